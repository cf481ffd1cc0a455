"""One atomic commit holds everything a run needs to continue: both sides write into it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from slime_core.config.checkpoint import CheckpointConfig
from slime_core.interfaces import Rollout
from slime_core.staging import Staging, begin, clean, latest

logger = logging.getLogger(__name__)


class SavingTrainer(Protocol):
    """What a checkpoint asks of the trainer."""

    def save(self, directory: Path, iteration: int) -> None:
        """Write into ``directory``, or start to when saving is asynchronous."""
        ...

    def finish_save(self, wait: bool) -> bool:
        """Whether what ``save`` started is complete."""
        ...

    def save_hf(self, directory: Path) -> None:
        """Write a Hugging Face checkpoint."""
        ...


class Checkpoints:
    """Writes the checkpoints of a run; at most one is under way."""

    def __init__(self, config: CheckpointConfig, trainer: SavingTrainer, rollout: Rollout) -> None:
        self._config, self._trainer, self._rollout = config, trainer, rollout
        self._pending: Staging | None = None

    def save(self, iteration: int) -> None:
        """Checkpoint after ``iteration``; with ``--async-save`` it is committed later."""
        self.finish(wait=True)
        if self._config.save is not None:
            self._pending = self._write(Path(self._config.save), iteration)
            self.finish(wait=not self._config.async_save)
        if self._config.save_hf is not None:
            self._trainer.save_hf(Path(self._config.save_hf.format(rollout_id=iteration)))

    def finish(self, *, wait: bool) -> None:
        """Commit the checkpoint under way if every rank has written its part."""
        if self._pending is not None and self._trainer.finish_save(wait):
            final = self._pending.commit()
            self._pending = None
            logger.info("saved %s", final)

    def _write(self, save: Path, iteration: int) -> Staging:
        staging = begin(save, iteration)
        try:
            self._trainer.save(staging.directory, iteration)
            self._rollout.save(staging.directory, iteration)
        except BaseException:
            staging.discard()
            raise
        return staging


def resume_from(config: CheckpointConfig, say: Callable[[str], None]) -> Path | None:
    """The committed checkpoint to continue from, or None.

    What the run itself wrote comes first, so that the same command continues; then ``--load``.
    """
    if config.save is not None:
        clean(Path(config.save))
    for flag, where in (("--save", config.save), ("--load", config.load)):
        found = where and latest(Path(where), config.ckpt_step if flag == "--load" else None)
        if found:
            say(f"continuing from {found} ({flag})")
            return found
    return None
