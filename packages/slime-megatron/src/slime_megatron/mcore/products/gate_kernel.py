"""Going back through a gated activation in one pass, as a Triton kernel."""

# Triton reads the kernels' annotations itself, and knows none of Python's.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_WARPS = 4


def gate_backward(given: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of ``given`` [rows, 2 width], silu(first half) * second half [rows, width]).

    Six values are read and written for each of ``grad``, and none twice.
    """
    given, grad = given.contiguous(), grad.contiguous()
    rows, width = grad.shape
    to_given, gated = torch.empty_like(given), torch.empty_like(grad)
    if rows:
        kernel: Any = _gate_backward
        grid = (rows, -(-width // _BLOCK))
        kernel[grid](given, grad, to_given, gated, width, BLOCK=_BLOCK, num_warps=_WARPS)
    return to_given, gated


@triton.jit
def _gate_backward(
    given, grad, to_given, gated, width,
    BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < width
    first = row * 2 * width + at
    narrow = row * width + at
    x = tl.load(given + first, mask=live, other=0.0).to(tl.float32)
    y = tl.load(given + first + width, mask=live, other=0.0).to(tl.float32)
    d = tl.load(grad + narrow, mask=live, other=0.0).to(tl.float32)
    share = 1 / (1 + tl.exp(-x))
    opened = x * share
    kind = given.dtype.element_ty
    tl.store(gated + narrow, (opened * y).to(kind), mask=live)
    tl.store(to_given + first, (d * y * share * (1 + x - opened)).to(kind), mask=live)
    tl.store(to_given + first + width, (d * opened).to(kind), mask=live)
