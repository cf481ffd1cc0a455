"""A chunk of logits, and what is asked of it; on a GPU and on a CPU by different means."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


def precision(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over the vocabulary are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Slopes:
    """What each row's gradient is made of, over the temperature already.

    d_j = e^(x_j - normaliser) ([logit_j >= threshold] drop - spread (x_j - normaliser + entropy))
          + [j = target] rise
    """

    normaliser: Float[Tensor, " rows"]
    drop: Float[Tensor, " rows"]
    rise: Float[Tensor, " rows"]
    spread: Float[Tensor, " rows"] | None
    """None: the entropy has no gradient."""
    entropy: Float[Tensor, " rows"]
    threshold: Float[Tensor, " rows"] | None
    """Of logits before the temperature; None: all are above it."""

    def chunk(self, at: slice) -> "Slopes":
        """Those of some rows."""
        return Slopes(
            self.normaliser[at],
            self.drop[at],
            self.rise[at],
            None if self.spread is None else self.spread[at],
            self.entropy[at],
            None if self.threshold is None else self.threshold[at],
        )


class LogitRows(Protocol):
    """This rank's slice of some rows of logits."""

    @property
    def dtype(self) -> torch.dtype:
        """The type the logits came out in."""
        ...

    def sums(self, column: Int[Tensor, " rows"]) -> Float[Tensor, "four rows"]:
        """Of each row: largest, total, mean, target.

        The largest x; the sums of e^(x - largest) and of e^(x - largest) (x - largest); the logit
        in ``column`` before the temperature, 0 where ``column`` is -1.
        """
        ...

    def masses(
        self, thresholds: Float[Tensor, "n rows"], largest: Float[Tensor, " rows"]
    ) -> Float[Tensor, "n rows"]:
        """Sums of e^(x - largest) over the logits that are not below each threshold.

        Comes after ``sums``, whose ``largest`` is given.
        """
        ...

    def gradient(self, column: Int[Tensor, " rows"], slopes: Slopes) -> Float[Tensor, "rows vocab"]:
        """d(loss) / d(logits); the logits may be overwritten."""
        ...
