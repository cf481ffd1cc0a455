"""What the stages of an iteration ask of the model, in plain vectors."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from slime_core.batch import Ragged
from slime_core.interfaces import Reduce
from slime_core.losses.aggregate import LossOutput
from torch import Tensor

from slime_megatron.packing.pack import PackedMicrobatch, PackLayout

LossFn = Callable[[Tensor], LossOutput]
"""What the model gives for one rank's rows of a microbatch -> sums over them.

A policy gives [log-probabilities, entropies] of the scored rows, a model with a value head [values]
of them; asked for logits, it gives [1, rows, vocabulary / tp] of all rows.
"""


@runtime_checkable
class MovableLoss(Protocol):
    """A loss that holds tensors."""

    def to(self, device: torch.device) -> LossFn:
        """The same with them on ``device``."""
        ...


class Entropy(StrEnum):
    """What a pass does about the entropy of its predictions."""

    NONE = "none"
    REPORT = "report"
    """Compute it."""
    TRAIN = "train"
    """Compute it with its gradient."""


@dataclass(frozen=True)
class TrainItem:
    """A microbatch and what to do with what the model gives for it."""

    microbatch: PackedMicrobatch
    loss: LossFn

    def to(self, device: torch.device) -> "TrainItem":
        """The same with what it holds on ``device``, if its loss can be moved."""
        loss = self.loss.to(device) if isinstance(self.loss, MovableLoss) else self.loss
        return TrainItem(self.microbatch.to(device), loss)


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step is measured by, over all ranks."""

    divisor: float
    """The gradient is that of the summed loss divided by this."""
    num_samples: int
    """By how much the learning rate schedule advances."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step reports."""

    metrics: Mapping[str, float]
    """Means over the step, the same on every rank of the last pipeline stage; else empty."""
    grad_norm: float
    """Before clipping; not finite when the step was left out."""
    updated: bool
    learning_rates: tuple[float, ...]
    """Of the update, by parameter group."""


class Passes(Protocol):
    """One rank of the model; every rank makes the same calls in the same order."""

    @property
    def layout(self) -> PackLayout:
        """How microbatches are padded and divided."""
        ...

    @property
    def last_stage(self) -> bool:
        """Whether this rank sees what the model gives."""
        ...

    @property
    def reports(self) -> bool:
        """Whether this rank speaks for the ranks that hold the same samples."""
        ...

    @property
    def context(self) -> Reduce:
        """Adds over the ranks that share a sample's tokens."""
        ...

    @property
    def data(self) -> Reduce:
        """Adds over the ranks that hold different samples."""
        ...

    def using(self, policy: str) -> AbstractContextManager[None]:
        """The weights kept as ``policy`` are in the model inside the block."""
        ...

    def scores(
        self, microbatches: Sequence[PackedMicrobatch], entropy: Entropy = Entropy.NONE
    ) -> tuple[Ragged, ...] | None:
        """(log-probabilities, entropies) or (values,) of all response tokens.

        Row i belongs to the i-th sample of the microbatches; None before the last pipeline stage.
        """
        ...

    def step(
        self,
        items: Sequence[TrainItem],
        size: StepSize,
        entropy: Entropy = Entropy.NONE,
        *,
        logits: bool = False,
    ) -> StepResult:
        """Take one optimizer step."""
        ...
