"""What is scored: which rows, for which targets, and this rank's part of the vocabulary."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from megatron.core import parallel_state
from torch import Tensor

from slime_megatron.iteration.passes import Entropy


@dataclass(frozen=True)
class VocabSlice:
    """The part of the vocabulary this rank scores: tokens ``start`` to ``start + size - 1``."""

    start: int
    size: int
    group: Any
    """The ranks that hold the other parts; None if there are none."""

    @classmethod
    def of(cls, rows: int, vocab_size: int) -> "VocabSlice":
        """The slice of an output layer with ``rows`` rows on this tensor-parallel rank."""
        rank = parallel_state.get_tensor_model_parallel_rank()
        alone = parallel_state.get_tensor_model_parallel_world_size() == 1
        group = None if alone else parallel_state.get_tensor_model_parallel_group()
        return cls(rank * rows, max(0, min(rows, vocab_size - rank * rows)), group)

    def column(self, targets: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Of each target its column in this slice; -1 if it is not there."""
        column = targets - self.start
        return torch.where((column >= 0) & (column < self.size), column, -1)


@dataclass(frozen=True)
class Scoring:
    """What to compute at the end of the model for one microbatch."""

    rows: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    vocab_size: int
    """Without padding."""
    temperature: float = 1.0
    chunk_size: int = 1024
    entropy: Entropy = Entropy.NONE
    top_p: float = 1.0
    """Log-probabilities are those of nucleus sampling; 1: of all tokens."""
    keep: bool = False
    """Keep the logits for going back where there is memory for it; no bit depends on it."""

    @property
    def scale(self) -> float:
        """What logits are multiplied by: everywhere so, that equal logits stay equal."""
        return 1 / self.temperature
