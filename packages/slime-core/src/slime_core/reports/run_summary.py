"""The last words of a run: what it left and where, and how to go on."""

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from slime_core.config.checkpoint import CheckpointConfig
from slime_core.errors import CheckpointError
from slime_core.files.staging import latest
from slime_core.processes.sentinel import Terminated

logger = logging.getLogger(__name__)

_WIDTH = 12


def finished(
    directory: Path, seconds: float, config: CheckpointConfig, iterations: Sequence[int]
) -> str:
    """Where everything is that a run which made ``iterations`` has left."""
    lines = [
        ("metrics", str(directory / "metrics.jsonl")),
        ("logs", str(directory / "logs")),
        *_saved(config, iterations),
    ]
    told = "\n".join(f"  {name:<{_WIDTH}}{where}" for name, where in lines)
    return f"finished in {duration(seconds)}\n{told}"


def interrupted(save: str | None) -> str:
    """What becomes of a run that was told to end."""
    if save is None:
        return "nothing was saved, as there is no --save; the same command begins anew"
    found = _newest(save)
    if found is None:
        return f"nothing was saved yet in --save {save}; the same command begins anew"
    return f"{found} is saved; the same command goes on from there"


def stopped(end: KeyboardInterrupt, directory: Path, save: str | None) -> int:
    """Say, on the terminal and in the log, how a run was ended from outside; the exit code."""
    text = f"{str(end) or 'interrupted'}; {interrupted(save)}"
    logger.warning("%s", text)
    sys.stderr.write(f"\nslime-train: {text}\nlogs: {directory / 'logs'}\n")
    return 128 + (signal.SIGTERM if isinstance(end, Terminated) else signal.SIGINT)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, without leading zeros.

    >>> duration(3723.4)
    '1 h 2 min 3 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join(f"{value} {unit}" for value, unit in parts[first:])


def _saved(config: CheckpointConfig, iterations: Sequence[int]) -> Iterator[tuple[str, str]]:
    checkpoint = _newest(config.save)
    if checkpoint is not None:
        yield "checkpoint", str(checkpoint)
    exported = _exported(config.save_hf, iterations)
    if exported is not None:
        yield "weights", f"{exported} (Hugging Face)"
    if checkpoint is None and exported is None and iterations:
        flags = config.save is not None or config.save_hf is not None
        yield "weights", "none were written" if flags else "not saved: no --save, no --save-hf"


def _newest(save: str | None) -> Path | None:
    """None, too, for one that is damaged: going on from it says so."""
    try:
        return None if save is None else latest(Path(save))
    except CheckpointError:
        return None


def _exported(pattern: str | None, iterations: Sequence[int]) -> Path | None:
    if pattern is None:
        return None
    paths = (Path(pattern.format(rollout_id=iteration)) for iteration in reversed(iterations))
    return next((path for path in paths if (path / "config.json").is_file()), None)
