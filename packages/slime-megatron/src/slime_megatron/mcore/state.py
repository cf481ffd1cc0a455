"""What a trainer rank owns: the model chunks, their optimizer and scheduler, and who they are."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from slime_convert.families import Family


@dataclass(frozen=True, eq=False)
class TrainState:
    """One rank's share of the training state.

    Made once by ``TrainerRank.initialize``; the modules and the optimizer inside are mutated by
    steps, loads and snapshots. Never crosses processes.
    """

    args: Any
    """Megatron's namespace: every flag after validation, plus ``padded_vocab_size``."""
    chunks: list[torch.nn.Module]
    """Model chunks of this pipeline rank, wrapped in DistributedDataParallel; one unless virtual
    pipeline stages are used."""
    optimizer: Any
    """A Megatron optimizer over all chunks."""
    scheduler: Any
    """``OptimizerParamScheduler``, counting samples."""
    family: "Family"
    """With a score in place of the vocabulary where the model has a value head."""
    hf_config: Mapping[str, Any]
    device: torch.device
    value_head: bool = False
    """Whether the model ends in one number per token instead of the vocabulary."""
    partly_trained: bool = False
    """Whether weights are frozen by name, on any rank."""

    def __post_init__(self) -> None:
        chained = getattr(self.optimizer, "chained_optimizers", ())
        weakref.finalize(self, _take_apart, [*self.chunks, self.optimizer, *chained])


def _take_apart(parts: list[Any]) -> None:
    """Let model and optimizer go, and with them their process groups and the threads of those.

    They own nodes of the autograd graph on which hooks hang that own them: a cycle through C++, of
    which the garbage collector sees only a part.
    """
    for part in parts:
        if part is not None:
            vars(part).clear()
