"""What experts compute besides their matrix products, each in one pass, as Triton kernels.

    gate[r]          silu(opened[r, first half]) * opened[r, second half] * share[r]
    sums[e]         += gradients of expert e, where rows went to it

Everything is computed in float32 and rounded once.
"""

# Triton reads the kernels' annotations itself, and knows none of Python's.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = tl.constexpr(1024)
_WARPS = 4


def gate(
    opened: Float[Tensor, "rows both"], shares: Float[Tensor, " rows"]
) -> Float[Tensor, "rows width"]:
    """Of rows [rows, 2 width], each weighed by its share."""
    rows, width = opened.shape[0], opened.shape[1] // 2
    out = opened.new_empty(rows, width)
    if rows:
        kernel: Any = _gate
        grid = (rows, -(-width // _BLOCK.value))
        kernel[grid](opened.contiguous(), shares.contiguous(), out, width, num_warps=_WARPS)
    return out


def gate_backward(
    opened: Float[Tensor, "rows both"],
    shares: Float[Tensor, " rows"],
    grad: Float[Tensor, "rows width"],
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of ``opened``, gradient of ``shares``, what ``gate`` gave)."""
    opened, shares, grad = opened.contiguous(), shares.contiguous(), grad.contiguous()
    to_opened, to_shares, gated = map(torch.empty_like, (opened, shares, grad))
    rows, width = grad.shape
    if rows:
        kernel: Any = _gate_backward
        kernel[(rows,)](opened, shares, grad, to_opened, to_shares, gated, width, num_warps=_WARPS)
    return to_opened, to_shares, gated


def add_to_sums(
    sums: Float[Tensor, "experts a b"],
    found: Float[Tensor, "experts a b"],
    ends: Int[Tensor, " experts"],
) -> None:
    """``sums`` += ``found``, of experts with rows alone: ``ends[e]`` is where expert e's rows end.

    The matrices of ``sums`` are contiguous, and equally far from each other.
    """
    kernel: Any = _add_to_sums
    size = found[0].numel()
    grid = (-(-size // _BLOCK.value), len(found))
    kernel[grid](sums, found.contiguous(), ends, size, sums.stride(0), num_warps=_WARPS)


@triton.jit
def _gate(opened, shares, out, width):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * _BLOCK + tl.arange(0, _BLOCK)
    live = at < width
    first = row * 2 * width + at
    x = tl.load(opened + first, mask=live, other=0.0).to(tl.float32)
    y = tl.load(opened + first + width, mask=live, other=0.0).to(tl.float32)
    share = tl.load(shares + row).to(tl.float32)
    value = x / (1 + tl.exp(-x)) * y * share
    tl.store(out + row * width + at, value.to(opened.dtype.element_ty), mask=live)


@triton.jit
def _gate_backward(opened, shares, grad, to_opened, to_shares, gated, width):
    row = tl.program_id(0).to(tl.int64)
    share = tl.load(shares + row).to(tl.float32)
    kind = opened.dtype.element_ty
    to_share = tl.zeros([_BLOCK], tl.float32)
    for start in range(0, width, _BLOCK):
        at = start + tl.arange(0, _BLOCK)
        live = at < width
        first = row * 2 * width + at
        narrow = row * width + at
        x = tl.load(opened + first, mask=live, other=0.0).to(tl.float32)
        y = tl.load(opened + first + width, mask=live, other=0.0).to(tl.float32)
        d = tl.load(grad + narrow, mask=live, other=0.0).to(tl.float32)
        slope = 1 / (1 + tl.exp(-x))
        silu = x * slope
        to_share += d * silu * y
        weighed = d * share
        tl.store(gated + narrow, (silu * y * share).to(kind), mask=live)
        tl.store(to_opened + first, (weighed * y * slope * (1 + x - silu)).to(kind), mask=live)
        tl.store(to_opened + first + width, (weighed * silu).to(kind), mask=live)
    tl.store(to_shares + row, tl.sum(to_share, 0).to(shares.dtype.element_ty))


@triton.jit
def _add_to_sums(sums, found, ends, size, distance):
    expert = tl.program_id(1).to(tl.int64)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    if tl.load(ends + expert) > begin:
        at = tl.program_id(0) * _BLOCK + tl.arange(0, _BLOCK)
        live = at < size
        place = sums + expert * distance + at
        total = tl.load(place, mask=live, other=0.0)
        more = tl.load(found + expert * size + at, mask=live, other=0.0)
        tl.store(place, total + more.to(sums.dtype.element_ty), mask=live)
