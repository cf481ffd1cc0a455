"""The place of the trainer in a run that only generates."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slime_core.interfaces import BatchHandle, Metrics
from slime_core.residency import Holding


class NoTrainer:
    """The loop's ``Trainer`` verbs, and those of starting and ending; none does anything."""

    def initialize(
        self, rendezvous: str, load: Path | None
    ) -> Callable[[], tuple[int, Mapping[str, float]]]:
        """Ready at once, to begin with iteration 0."""
        return lambda: (0, {})

    def connect(self, engines: Sequence[Any]) -> None:
        """The engines keep the weights that they were started with."""

    def train(self, iteration: int, batch: BatchHandle) -> Metrics:
        """Leave the batch alone."""
        return {}

    def publish(self, version: int) -> Metrics:
        """There is nothing new."""
        return {}

    def hold(self, what: Holding) -> float:
        """There is nothing to move."""
        return 0.0

    def save(self, directory: Path, iteration: int) -> None:
        """There is no state."""

    def finish_save(self, wait: bool) -> bool:
        """Nothing is being written."""
        return True

    def save_hf(self, directory: Path) -> None:
        """The weights are those of --hf-checkpoint."""

    def shutdown(self) -> None:
        """Nothing was started."""
