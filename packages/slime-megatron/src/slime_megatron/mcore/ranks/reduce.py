"""Sums over a process group that carry gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllReduceSum(torch.autograd.Function):
    """y = sum_r x_r on every rank.

    With the total loss being the sum of the ranks' losses, dL/dx_r = sum_r' dL_r'/dy: the backward
    pass is the same sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        """Add."""
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Add the gradients."""
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class GroupReduce:
    """``slime_core.interfaces.Reduce`` over a process group whose collectives run on ``device``.

    Tensors from elsewhere are taken there and their sum is brought back.
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        self._group = group
        self._device = device

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` over the group, same shape."""
        if dist.get_world_size(self._group) == 1:
            return x
        total = _AllReduceSum.apply(x.to(self._device), self._group)
        return total.to(x.device)  # type: ignore[no-any-return]
