"""The gate of an MLP, forwards and back: silu(first half) * second half."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_shapes: Any = torch.library.register_fake
_library = torch.library.Library("slime", "FRAGMENT")
_library.define("gate_backward(Tensor given, Tensor grad) -> (Tensor, Tensor)")


def gate(given: Tensor) -> Tensor:
    """silu(first half) * second half, of the last dimension."""
    first, second = given.chunk(2, -1)
    return functional.silu(first) * second


def gate_backward(given: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of ``given``, the gate's output), [rows, 2 width] and [rows, width]."""
    if given.is_cuda:
        from slime_megatron.mcore.products import gate_kernel

        return gate_kernel.gate_backward(given, grad)
    first, second = given.chunk(2, -1)
    share = first.sigmoid()
    opened = first * share
    slope = grad * second * share * (1 + first - opened)
    return torch.cat((slope, grad * opened), -1), opened * second


_library.impl("gate_backward", gate_backward, "CompositeExplicitAutograd")


@_shapes("slime::gate_backward", lib=_library)
def _(given: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(given), torch.empty_like(grad)
