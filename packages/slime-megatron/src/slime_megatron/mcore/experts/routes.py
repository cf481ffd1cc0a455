"""Rows on their way from tokens to experts and back, each way the other's gradient.

Every token goes to ``topk`` experts. Sorted by expert, its copies are rows of a table as long as
all tokens' choices together:

    spread      row[r] = token[token_of_row[r]]
    collected   token[t] = sum of rows r with token_of_row[r] = t, in the order of their experts

The sum is taken in float32 and rounded once. Nothing is scattered: a row is found from its token
as a token is from its row, so no two threads add to one number, and the same input gives the same
bits in every pass, going forward and back.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Routes:
    """Who goes where."""

    choices: Int[Tensor, " rows"]
    """Of each row its place in the table of choices [experts, tokens], read row by row."""
    token_of_row: Int[Tensor, " rows"]
    row_of_choice: Int[Tensor, " rows"]
    """The rows of the first token in the order of its experts, then those of the second, ..."""
    tokens: int

    @classmethod
    def of(cls, chosen: Bool[Tensor, "tokens experts"], topk: int) -> Self:
        """``chosen``: exactly ``topk`` of each token's experts."""
        tokens = len(chosen)
        first = chosen.t().reshape(-1).argsort(descending=True, stable=True)
        choices = first[: tokens * topk]
        token_of_row = choices % tokens
        return cls(choices, token_of_row, token_of_row.argsort(stable=True), tokens)

    def picked(self, table: Float[Tensor, "tokens experts"]) -> Float[Tensor, " rows"]:
        """What ``table`` holds of each row's token and expert."""
        return table.t().reshape(-1).gather(0, self.choices)


def spread(x: Float[Tensor, "tokens hidden"], routes: Routes) -> Float[Tensor, "rows hidden"]:
    """A copy of its token for every row."""
    return _Spread.apply(x, routes)  # type: ignore[return-value]


def collected(x: Float[Tensor, "rows hidden"], routes: Routes) -> Float[Tensor, "tokens hidden"]:
    """The sum of its rows for every token."""
    return _Collected.apply(x, routes)  # type: ignore[return-value]


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, routes: Routes) -> Tensor:
        ctx.routes = routes
        return x.index_select(0, routes.token_of_row)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sums(grads[0], ctx.routes), None


class _Collected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, routes: Routes) -> Tensor:
        ctx.routes = routes
        return _sums(x, routes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.routes.token_of_row), None


def _sums(x: Tensor, routes: Routes) -> Tensor:
    by_token = x.index_select(0, routes.row_of_choice).view(routes.tokens, -1, x.shape[-1])
    return by_token.sum(1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
