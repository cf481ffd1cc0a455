"""All experts of a layer in two grouped matrix products.

Megatron's ``SequentialMLP`` runs one expert after the other: with 128 of them a layer is a thousand
small kernels. Here rows, which the dispatcher has sorted by expert, are multiplied by all experts'
weights in one product (``torch``'s own grouped one in bfloat16 on a GPU, expert by expert
elsewhere). Where weights follow each other at equal distances in memory, products read them, and
add their gradients, where they lie; where they do not, a product copies them for as long as it
takes.

    x [rows, in], rows of expert e from ends[e - 1] to ends[e];   out = x_e @ w_e.T
    d x_e = d out_e @ w_e         d w_e = d out_e.T @ x_e

How many rows each expert has stays on the device: nothing here waits for it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from slime_megatron.mcore.products import mlp_gate

_kernels: Any = torch
"""What torch has without exporting it."""


def product(x: Tensor, stacked: Tensor, ends: Tensor) -> Tensor:
    """[rows, in] by [experts, in, out], each expert's rows by its matrix."""
    if _is_grouped(x):
        return _kernels._grouped_mm(x, stacked, offs=ends)
    parts = x.split(_counts(ends))
    return torch.cat([part @ weight for part, weight in zip(parts, stacked, strict=True)])


def outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """[rows, a], [rows, b] -> [experts, a, b], the sums of products of each expert's rows.

    Of an expert without rows there may be anything.
    """
    if _is_grouped(left):
        return _kernels._grouped_mm(left.t(), right, offs=ends)
    pairs = zip(left.split(_counts(ends)), right.split(_counts(ends)), strict=True)
    return torch.stack([a.t() @ b for a, b in pairs])


def _is_grouped(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16 and len(x) > 0


def _counts(ends: Tensor) -> list[int]:
    return ends.diff(prepend=ends.new_zeros(1)).tolist()


class GroupedProduct(torch.autograd.Function):
    """``x_e @ w_e.T`` for every expert; weights' gradients go to their sums where they have one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, *weights: Tensor) -> Float[Tensor, "rows out"]:
        """``weights``: [out, in] of every expert."""
        ctx.save_for_backward(x, ends, *weights)
        return product(x, table(weights).transpose(1, 2), ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Weights that had to be copied are copied once more instead of being kept."""
        x, ends, *weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_x = product(grad, table(weights), ends)
        return to_x, None, *_to_weights(weights, grad, x, ends)


class GatedGroupedProduct(torch.autograd.Function):
    """``gate(opened)_e @ w_e.T``; keeps what goes into the gate, and computes the rest again."""

    @staticmethod
    def forward(
        ctx: Any, opened: Tensor, shares: Tensor, ends: Tensor, *weights: Tensor
    ) -> Float[Tensor, "rows out"]:
        """``opened`` [rows, 2 in]; ``shares`` [rows], what each row is weighed by."""
        ctx.save_for_backward(opened, shares, ends, *weights)
        return product(gate(opened, shares), table(weights).transpose(1, 2), ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """As ``GroupedProduct``'s, and back through the gate in the same pass."""
        opened, shares, ends, *weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_gated = product(grad, table(weights), ends)
        to_opened, to_shares, gated = gate_backward(opened, shares, to_gated)
        return to_opened, to_shares, None, *_to_weights(weights, grad, gated, ends)


def gate(opened: Tensor, shares: Tensor) -> Tensor:
    """silu(first half) * second half * share of the row, [rows, 2 width] -> [rows, width]."""
    if opened.is_cuda:
        from slime_megatron.mcore.experts import expert_kernels

        return expert_kernels.gate(opened, shares)
    return (mlp_gate.gate(opened) * shares[:, None]).to(opened.dtype)


def gate_backward(opened: Tensor, shares: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of ``opened``, gradient of ``shares``, what ``gate`` gave)."""
    if opened.is_cuda:
        from slime_megatron.mcore.experts import expert_kernels

        return expert_kernels.gate_backward(opened, shares, grad)
    weights = shares[:, None]
    to_opened, gated = mlp_gate.gate_backward(opened, grad * weights)
    to_shares = (grad * gated).sum(-1, dtype=shares.dtype)
    return to_opened.to(opened.dtype), to_shares, (gated * weights).to(opened.dtype)


def _to_weights(
    weights: Sequence[Any], grad: Tensor, given: Tensor, ends: Tensor
) -> list[Tensor | None]:
    """What autograd is told of every expert's weight, some or all of which may be frozen.

    Of a frozen one nothing; its gradient; or a placeholder where that was added to a sum.
    """
    if not any(weight.requires_grad for weight in weights):
        return [None] * len(weights)
    found = outer(grad, given, ends)
    sums: list[Any] = [getattr(weight, "gradient_sum", None) for weight in weights]
    summed = [total for total in sums if total is not None]
    whole = in_place(summed) if len(summed) == len(weights) else None
    if whole is not None and whole.is_cuda:
        from slime_megatron.mcore.experts import expert_kernels

        expert_kernels.add_to_sums(whole, found, ends)
        return [torch.empty_like(weight) for weight in weights]
    gradients = _without_idle(found, ends).unbind()
    if summed:
        added = zip(sums, gradients, strict=True)
        more = [gradient.to(total.dtype) for total, gradient in added if total is not None]
        _kernels._foreach_add_(summed, more)
    told = zip(weights, sums, gradients, strict=True)
    return [_told(weight, total is not None, gradient) for weight, total, gradient in told]


def _told(weight: Tensor, is_added: bool, gradient: Tensor) -> Tensor | None:
    if not weight.requires_grad:
        return None
    return torch.empty_like(weight) if is_added else gradient


def _without_idle(found: Tensor, ends: Tensor) -> Tensor:
    """Zeros for experts that had no rows."""
    idle = ends.diff(prepend=ends.new_zeros(1)) == 0
    return found.masked_fill_(idle[:, None, None], 0)


def table(tensors: Sequence[Tensor]) -> Tensor:
    """[experts, ...] of equal shapes: where they lie if that can be, else a copy."""
    found = in_place(tensors)
    return torch.stack(list(tensors)) if found is None else found


def in_place(tensors: Sequence[Tensor]) -> Tensor | None:
    """One view of all, if they follow each other at equal distances in one piece of memory."""
    first = tensors[0]
    places = [x.data_ptr() for x in tensors]
    distances = {after - before for before, after in pairwise(places)}
    distance = min(distances, default=0)
    together = first.untyped_storage().data_ptr() == tensors[-1].untyped_storage().data_ptr()
    if len(distances) != 1 or distance < first.nbytes or not (together and first.is_contiguous()):
        return None
    strides = (distance // first.element_size(), *first.stride())
    return first.detach().as_strided((len(tensors), *first.shape), strides)
