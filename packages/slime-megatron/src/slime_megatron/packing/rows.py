"""Rows of a tensor picked by index, with a gradient that is picked, too."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Picked:
    """Which rows are taken, and where each row went: to no place, to one, or to several."""

    taken: Int[Tensor, " places"]
    places: Int[Tensor, "copies rows"]
    """Of every row the places it went to; any number where there is none."""
    absent: Bool[Tensor, "copies rows"] | None = None
    """Where ``places`` means nothing; None where it always means something."""

    def of(self, x: Tensor) -> Tensor:
        """``x[taken]``, of rows that are matrices: [rows, heads, d] to [places, heads, d]."""
        return _Rows.apply(x, self)  # pyright: ignore[reportReturnType]


def where_taken(taken: Int[Tensor, " places"], num_rows: int) -> Picked:
    """``taken``, of one row at least, and its inverse; rows may be taken several times."""
    counts = torch.bincount(taken, minlength=num_rows)
    copies = int(counts.max())
    places = torch.zeros(copies, num_rows, dtype=torch.long)
    order = torch.argsort(taken, stable=True)
    first = counts.cumsum(0) - counts
    copy = torch.arange(len(taken)) - first[taken[order]]
    places[copy, taken[order]] = order
    absent = torch.arange(copies)[:, None] >= counts[None, :]
    return Picked(taken, places, absent if bool(absent.any()) else None)


class _Rows(torch.autograd.Function):
    """``index_select`` by itself adds gradients up atomically: slow, and in no certain order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, picked: Picked) -> Tensor:
        ctx.picked = picked
        return x.index_select(0, picked.taken)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        picked: Picked = ctx.picked
        total: Tensor | None = None
        for copy, places in enumerate(picked.places):
            part = grads[0].index_select(0, places)
            if picked.absent is not None:
                part.masked_fill_(picked.absent[copy][:, None, None], 0)
            total = part if total is None else total.add_(part)
        return total, None
