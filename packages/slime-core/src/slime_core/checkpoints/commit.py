"""One atomic commit holds everything a run needs to continue: both sides write into it."""

import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Protocol, runtime_checkable

from slime_core.checkpoints.retention import Retention, spared
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.model import ModelConfig
from slime_core.config.reference import ReferenceConfig
from slime_core.errors import CheckpointError
from slime_core.files.staging import Staging, begin, latest

logger = logging.getLogger(__name__)


@runtime_checkable
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


@runtime_checkable
class SavingRollout(Protocol):
    """What a checkpoint asks of the generating side."""

    def save(self, directory: Path, iteration: int) -> None:
        """Write what is left to do after ``iteration``."""
        ...


@runtime_checkable
class Run(Protocol):
    """What a checkpoint asks of a run's configuration."""

    @property
    def checkpoint(self) -> CheckpointConfig:
        """Where, and how many."""
        ...

    @property
    def reference(self) -> ReferenceConfig:
        """What is read besides, and so is never deleted."""
        ...

    @property
    def model(self) -> ModelConfig:
        """The same."""
        ...


class Checkpoints:
    """Writes the checkpoints of a run; at most one is under way."""

    def __init__(
        self,
        config: CheckpointConfig,
        trainer: SavingTrainer,
        rollout: SavingRollout,
        spared: Iterable[Path] = (),
    ) -> None:
        """``spared``: what is never deleted, as ``retention.spared`` finds it."""
        self._config, self._trainer, self._rollout = config, trainer, rollout
        self._retention = Retention(config, spared)
        self._pending: Staging | None = None

    @classmethod
    def of(cls, run: Run, trainer: SavingTrainer, rollout: SavingRollout) -> "Checkpoints":
        """Those of a run, which spare what its command line names."""
        named = spared(run.checkpoint, run.reference, run.model.hf_checkpoint)
        return cls(run.checkpoint, trainer, rollout, named)

    def save(self, iteration: int) -> None:
        """Checkpoint after ``iteration``; with ``--async-save`` it is committed later.

        What --save-hf writes is there before the commit: a run that is killed in between makes the
        iteration, and its export, again.
        """
        self.finish(wait=True)
        if self._config.save is not None:
            with _full_disk_named(Path(self._config.save)):
                self._pending = self._write(Path(self._config.save), iteration)
        if self._config.save_hf is not None:
            self._export(Path(self._config.save_hf.format(rollout_id=iteration)), iteration)
        self.finish(wait=not self._config.async_save)

    def finish(self, *, wait: bool) -> None:
        """Commit the checkpoint under way if every rank has written its part.

        Asked without ``wait`` after every iteration in which nothing is saved.
        """
        if self._pending is None:
            return
        with _full_disk_named(self._pending.save):
            try:
                if not self._trainer.finish_save(wait):
                    return
                final = self._pending.commit()
            except BaseException:
                self._pending.discard()
                self._pending = None
                raise
        iteration, self._pending = self._pending.iteration, None
        logger.info("saved %s", final)
        if isinstance(iteration, int):
            self._retention.committed(iteration)

    def _export(self, directory: Path, iteration: int) -> None:
        staged = None if self._pending is None else self._pending.directory
        try:
            self._trainer.save_hf(directory)
            self._retention.exported(iteration, directory, staged)
        except Exception as error:
            if self._pending is None or not _of_the_place(error):
                raise
            self.finish(wait=True)  # what was trained is not lost for it
            why = f"there is no room ({error})" if _for_lack_of_room(error) else str(error)
            raise CheckpointError(
                f"--save-hf {directory}: {why}, but the checkpoint in "
                f"--save {self._config.save} is complete. Make room, or choose another directory, "
                f"and write it from there: slime-convert dist-to-hf --dist {self._config.save} "
                f"--hf-config MODEL --out {directory}"
            ) from error
        if self._config.save is None:
            self._retention.committed(iteration)

    def _write(self, save: Path, iteration: int) -> Staging:
        staging = begin(save, iteration)
        try:
            self._trainer.save(staging.directory, iteration)
            self._rollout.save(staging.directory, iteration)
        except BaseException:
            staging.discard()
            raise
        return staging


@contextmanager
def _full_disk_named(save: Path) -> Generator[None]:
    """Say that there is no room where a write failed for lack of it, in whichever process."""
    try:
        yield
    except (OSError, RuntimeError, CheckpointError) as error:
        if not _for_lack_of_room(error):
            raise
        kept = latest(save)
        raise CheckpointError(
            f"--save {save}: there is no room for another checkpoint ({error}); "
            f"{kept.name if kept else 'none'} is there and complete. Make room, or save elsewhere, "
            "and start the same command again"
        ) from error


def _of_the_place(error: BaseException) -> bool:
    """Whether it is about where something was to be written, and not about a process or a GPU."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return False
    return isinstance(error, (OSError, CheckpointError)) or _for_lack_of_room(error)


def _for_lack_of_room(error: BaseException | None) -> bool:
    """Whether it, or what it was raised from, is about space; torch says it only in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EFBIG):
            return True
        if any(words in str(error) for words in ("No space left", "PytorchStreamWriter failed")):
            return True
        error = error.__cause__
    return False
