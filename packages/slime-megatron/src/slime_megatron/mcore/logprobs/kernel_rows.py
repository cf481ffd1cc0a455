"""The passes over a chunk of logits as Triton kernels.

Each reads the logits once, in the type the product left them in, and computes in float32; the
gradient takes their place. With tensor operations each of a dozen steps would read and write a
float32 copy, which takes longer than the products themselves.
"""

# Triton reads the kernels' annotations itself, and knows none of Python's.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from slime_megatron.mcore.logprobs.logits import Slopes

_BLOCK = 4096
_WARPS = 8


class KernelRows:
    """``LogitRows`` on a GPU."""

    def __init__(self, logits: Tensor, scale: float) -> None:
        self.dtype = logits.dtype
        self._logits = logits
        self._shape = (logits.shape[1], logits.stride(0), scale)

    def sums(self, column: Tensor) -> Tensor:
        """See ``LogitRows``.

        The weighted sum is taken even if no entropy is wanted: then wanting it cannot change a
        bit of the log-probabilities.
        """
        rows = self._logits.shape[0]
        out = torch.empty(4, rows, dtype=torch.float32, device=column.device)
        self._launch(_sums, (rows,), column, out, rows)
        return out

    def masses(self, thresholds: Tensor, largest: Tensor) -> Tensor:
        """See ``LogitRows``; for one or three thresholds."""
        count, rows = thresholds.shape
        out = torch.empty(count, rows, dtype=torch.float32, device=largest.device)
        given = thresholds.float().contiguous()
        self._launch(_masses, (rows,), given, largest, out, rows, COUNT=count)
        return out

    def gradient(self, column: Tensor, slopes: Slopes) -> Tensor:
        """See ``LogitRows``; in the place of the logits."""
        rows, width = self._logits.shape
        spread, threshold = slopes.spread, slopes.threshold
        self._launch(
            _gradient,
            (rows, -(-width // _BLOCK)),
            column,
            slopes.normaliser,
            slopes.drop,
            slopes.rise,
            slopes.drop if spread is None else spread,
            slopes.entropy,
            slopes.drop if threshold is None else threshold,
            SPREAD=spread is not None,
            NUCLEUS=threshold is not None,
        )
        return self._logits

    def _launch(self, kernel: Any, grid: tuple[int, ...], *given: Any, **constants: Any) -> None:
        kernel[grid](
            self._logits, *self._shape, *given, **constants, BLOCK=_BLOCK, num_warps=_WARPS
        )


@triton.jit
def _sums(  # noqa: PLR0913, PLR0917
    logits, width, stride, scale, column, out, rows,
    BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    largest = -3.0e38  # not minus infinity, whose product with zero is not zero
    total = 0.0
    mean = 0.0
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(start + at, mask=at < width, other=float("-inf")).to(tl.float32) * scale
        above = tl.maximum(largest, tl.max(x, 0))
        shift = largest - above
        again = tl.exp(shift)
        powers = tl.exp(x - above)
        mean = again * (mean + shift * total)
        mean += tl.sum(tl.where(at < width, powers * (x - above), 0.0), 0)
        total = again * total + tl.sum(powers, 0)
        largest = above
    target = tl.load(column + row)
    picked = tl.load(start + target, mask=target >= 0, other=0.0).to(tl.float32)
    tl.store(out + row, largest)
    tl.store(out + rows + row, total)
    tl.store(out + 2 * rows + row, mean)
    tl.store(out + 3 * rows + row, picked)


@triton.jit
def _masses(  # noqa: PLR0913, PLR0917
    logits, width, stride, scale, thresholds, largest, out,
    rows, COUNT: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    above = tl.load(largest + row)
    low = tl.load(thresholds + row)
    middle = low
    high = low
    if COUNT == 3:
        middle = tl.load(thresholds + rows + row)
        high = tl.load(thresholds + 2 * rows + row)
    at_low = tl.zeros((BLOCK,), tl.float32)
    at_middle = tl.zeros((BLOCK,), tl.float32)
    at_high = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        logit = tl.load(start + at, mask=at < width, other=float("-inf")).to(tl.float32)
        powers = tl.exp(logit * scale - above)
        at_low += tl.where(logit >= low, powers, 0.0)
        if COUNT == 3:
            at_middle += tl.where(logit >= middle, powers, 0.0)
            at_high += tl.where(logit >= high, powers, 0.0)
    tl.store(out + row, tl.sum(at_low, 0))
    if COUNT == 3:
        tl.store(out + rows + row, tl.sum(at_middle, 0))
        tl.store(out + 2 * rows + row, tl.sum(at_high, 0))


@triton.jit
def _gradient(  # noqa: PLR0913, PLR0917
    logits, width, stride, scale, column, normaliser, drop,
    rise, spread, entropy, threshold,
    SPREAD: tl.constexpr, NUCLEUS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * stride + at
    logit = tl.load(place, mask=at < width, other=0.0).to(tl.float32)
    log_p = logit * scale - tl.load(normaliser + row)
    factor = tl.zeros((BLOCK,), tl.float32) + tl.load(drop + row)
    if NUCLEUS:
        factor = tl.where(logit >= tl.load(threshold + row), factor, 0.0)
    if SPREAD:
        factor -= tl.load(spread + row) * (log_p + tl.load(entropy + row))
    gradient = tl.exp(log_p) * factor
    gradient += tl.where(at == tl.load(column + row), tl.load(rise + row), 0.0)
    tl.store(place, gradient.to(logits.dtype.element_ty), mask=at < width)
