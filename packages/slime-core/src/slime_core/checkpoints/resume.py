"""Where a run goes on from: its own newest checkpoint, or what it was told to start from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.evaluation import EvalConfig
from slime_core.errors import CheckpointError
from slime_core.files.staging import RELEASE, clean, last_commit, latest

HOW_TO_LOAD = ("finetune", "no_load_optim", "no_load_rng")
"""Fields that say how a run starts from a checkpoint it did not write."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run goes on from."""

    directory: Path | None = None
    """A complete checkpoint; None for a run that begins."""
    own: bool = False
    """Whether the run wrote it: how to start is then settled, and the same command goes on."""


class Resume:
    """Answers for one command, whose run may be begun several times."""

    def __init__(
        self, config: CheckpointConfig, start: int | None, say: Callable[[str], None]
    ) -> None:
        """``start``: --start-rollout-id."""
        self._config, self._start, self._say = config, start, say
        self._commit = last_commit(config.save)
        self.origin = Origin()
        """What ``find`` has found last."""

    def find(self) -> Origin:
        """The checkpoint to go on from, after clearing away what a killed run left of others.

        What is in --save comes first, then --load. --ckpt-step picks from --load; where both are
        one directory it decides until this command has committed something itself.

        Raises:
            CheckpointError: what should be there is not, or is damaged.
        """
        config = self._config
        if config.save is not None:
            clean(Path(config.save))
        committed = last_commit(config.save) != self._commit
        step = config.ckpt_step if _in_place(config) and not committed else None
        for flag, where, picked in (
            ("--save", config.save, step),
            ("--load", config.load, config.ckpt_step),
        ):
            found = _newest(flag, where, picked)
            if found is not None:
                own = flag == "--save" and found.name != RELEASE  # which no run has written
                self._say(f"continuing from {found} ({flag}){self._left_out(step) if own else ''}")
                self.origin = Origin(found, own)
                return self.origin
        self.origin = Origin()
        return self.origin

    def is_over(self, last: int | None, evaluation: EvalConfig) -> bool:
        """Whether nothing is left to do: all ``last`` iterations (--num-rollout) are done.

        That they are is said; a run that evaluates before it trains goes on to do that.
        """
        save = self._config.save
        if save is None or last is None or last == 0:
            return False
        clean(Path(save))
        in_place = _in_place(self._config)
        found = _newest("--save", save, self._config.ckpt_step if in_place else None)
        if found is None or found.name == RELEASE or int(found.name.rpartition("_")[2]) + 1 < last:
            return False
        self._say(
            f"all {last} iterations of --num-rollout {last} are done; the last checkpoint is "
            f"{found} (--save). A larger --num-rollout goes on from there"
        )
        return not evaluation.evaluates or evaluation.skip_eval_before_train

    def _left_out(self, step: int | None) -> str:
        """Which flags have no effect on a run that goes on."""
        kept = going_on(self._config)
        names = [n for n in HOW_TO_LOAD if getattr(self._config, n) and not getattr(kept, n)]
        names += ["start_rollout_id"] if self._start is not None else []
        names += ["ckpt_step"] if self._config.ckpt_step != step else []
        if not names:
            return ""
        flags = ", ".join("--" + name.replace("_", "-") for name in names)
        return f"; {flags} counted when the run began: to begin anew give another --save"


def going_on(config: CheckpointConfig) -> CheckpointConfig:
    """The flags for a run that goes on from its own checkpoint: how it was started is over.

    Where the optimizer is not saved, a run that began with a fresh one begins with one again.
    """
    fresh = config.no_save_optim and (config.no_load_optim or config.finetune)
    return replace(config, finetune=False, no_load_rng=False, no_load_optim=fresh)


def _in_place(config: CheckpointConfig) -> bool:
    """Whether --load and --save are one directory."""
    if config.load is None or config.save is None:
        return False
    return Path(config.load).resolve() == Path(config.save).resolve()


def _newest(flag: str, where: str | None, step: int | None) -> Path | None:
    """The newest checkpoint, or that of ``step``; an error says how to take another one."""
    if where is None:
        return None
    try:
        return latest(Path(where), step)
    except CheckpointError as error:
        raise CheckpointError(
            f"{flag} {where}: {error}. To take another one give --load {where} --ckpt-step N"
            + (f" beside --save {where}" if flag == "--save" else "")
        ) from error
