"""Linear layers as steps of autograd whose weight gradients go to a sum inside the matrix product.

``torch.compile`` traces through them.
"""

from typing import Any

import torch
from torch import Tensor

from slime_megatron.mcore.products.mlp_gate import gate

_shapes: Any = torch.library.register_fake
_library = torch.library.Library("slime", "FRAGMENT")
_library.define(
    "add_weight_gradient(Tensor grad, Tensor input, Tensor weight, Tensor sum) -> Tensor"
)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total`` += ``left`` @ ``right``, without rounding the product to the factors' type."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


def _add_weight_gradient(grad: Tensor, given: Tensor, weight: Tensor, total: Tensor) -> Tensor:
    """Write to ``total``, which the signature does not say: nothing else in a graph reads it.

    What stands for the gradient has the weight's shape, because autograd asks for it, and no
    contents: nobody reads it (``mark_added_elsewhere``).
    """
    add_product(total.data, grad.t(), given)
    return torch.empty_like(weight)


_library.impl("add_weight_gradient", _add_weight_gradient, "CompositeExplicitAutograd")


@_shapes("slime::add_weight_gradient", lib=_library)
def _(grad: Tensor, given: Tensor, weight: Tensor, total: Tensor) -> Tensor:
    del grad, given, total
    return torch.empty_like(weight)


class FusedLinear(torch.autograd.Function):
    """``input @ weight.T``; going back, the weight's gradient goes to ``total``."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, total: Tensor) -> Tensor:
        """Rows are all dimensions but the last."""
        ctx.save_for_backward(given, weight, total)
        return torch.matmul(given, weight.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """The weight's own gradient is a placeholder."""
        given, weight, total = ctx.saved_tensors
        rows = grads[0].reshape(-1, grads[0].shape[-1])
        to_input = rows.matmul(weight).view(given.shape)
        flat = given.reshape(-1, given.shape[-1])
        placeholder = torch.ops.slime.add_weight_gradient(rows, flat, weight, total)
        return to_input, placeholder, None


class GatedProduct(torch.autograd.Function):
    """``gate(given) @ weight.T``; going back, the weight's gradient goes to ``total``.

    Keeps what goes into the gate, and computes what comes out of it once more when going back, in
    one pass with the gradient.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, total: Tensor) -> Tensor:
        """Rows are all dimensions but the last."""
        ctx.save_for_backward(given, weight, total)
        return torch.matmul(gate(given), weight.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """The weight's own gradient is a placeholder."""
        given, weight, total = ctx.saved_tensors
        rows = grads[0].reshape(-1, grads[0].shape[-1])
        flat = given.reshape(-1, given.shape[-1])
        to_given, gated = torch.ops.slime.gate_backward(flat, rows.matmul(weight))
        placeholder = torch.ops.slime.add_weight_gradient(rows, gated, weight, total)
        return to_given.view(given.shape), placeholder, None
