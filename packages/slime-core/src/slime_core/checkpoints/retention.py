"""Which checkpoints of a run are kept, and how the others are taken away.

A checkpoint and what --save-hf exported with it live and die together: the checkpoint holds a
record of its export, with size and time of every file, and an export that is not as it was
recorded belongs to somebody else by now. Nothing here imports torch.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.reference import ReferenceConfig
from slime_core.errors import CheckpointError
from slime_core.files.staging import (
    MANIFEST,
    complete,
    delete,
    finish_deleting,
    last_commit,
    latest,
)
from slime_core.files.staging import checkpoint_name as name_of

logger = logging.getLogger(__name__)

EXPORT = "hf_export.json"
"""In a checkpoint: what --save-hf wrote for the same iteration."""
_ITERATION = re.compile(r"^iter_(\d{7,})$")


def superfluous(
    iterations: Iterable[int], committed: int, *, newest: int, interval: int | None
) -> list[int]:
    """Which of ``iterations`` go once ``committed`` is complete, oldest first.

    The ``newest`` up to ``committed`` stay, and every one after which a multiple of ``interval``
    iterations are done (iteration 9 is the tenth). Later ones than ``committed`` are what a run
    that went back is about to replace: they neither go nor count.
    """
    past = sorted({i for i in iterations if i < committed} | {committed})
    return [i for i in past[:-newest] if interval is None or (i + 1) % interval]


def spared(
    config: CheckpointConfig, reference: ReferenceConfig, hf_checkpoint: str
) -> frozenset[Path]:
    """The directories that the command names to read from; whatever holds one of them stays."""
    in_place = _same(config.load, config.save)
    found: set[Path] = set()
    for where, step, moves in (
        (config.load, config.ckpt_step, in_place),
        (reference.ref_load, reference.ref_ckpt_step, False),
        (hf_checkpoint, None, False),
    ):
        if not where:
            continue
        found.add(Path(where).resolve())
        if step is not None:
            found.add((Path(where) / name_of(step)).resolve())
        elif not moves:  # the newest of the run's own, which the next commit takes the place of
            with suppress(CheckpointError):
                newest = latest(Path(where))
                found |= {newest.resolve()} if newest else set()
    return frozenset(found)


def _same(a: str | None, b: str | None) -> bool:
    return a is not None and b is not None and Path(a).resolve() == Path(b).resolve()


@dataclass(frozen=True, slots=True)
class Export:
    """A directory of --save-hf, as it was when it had been written."""

    directory: str
    files: dict[str, list[int]]
    """Size in bytes and time of the last change in seconds, by path within the directory."""

    @classmethod
    def of(cls, directory: Path) -> "Export":
        """What is there now."""
        files = {
            str(path.relative_to(directory)): [path.stat().st_size, int(path.stat().st_mtime)]
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        return cls(str(directory.resolve()), files)

    def delete(self, kept: frozenset[Path]) -> None:
        """Take it away, unless it is gone, is one of ``kept``, or is not as it was.

        Raises:
            OSError: it is still there, or in part.
        """
        directory = Path(self.directory)
        if not directory.is_dir():
            finish_deleting(directory)
        elif _holds(directory, kept) or directory.is_symlink():
            return
        elif Export.of(directory) != self:
            logger.warning("%s is kept: it was changed after it had been exported", directory)
        else:
            delete(directory)
            logger.info("deleted %s", directory)


class Retention:
    """Deletes what --save-retain-newest and --save-retain-interval do not keep."""

    def __init__(self, config: CheckpointConfig, kept: Iterable[Path] = ()) -> None:
        """``kept``: resolved paths that nothing may be deleted of (see ``spared``)."""
        self._config, self._kept = config, frozenset(kept)
        self._exports: dict[int, Export] = {}  # of a run without --save

    @property
    def deletes(self) -> bool:
        """Whether anything is ever deleted."""
        config = self._config
        return config.save_retain_newest is not None or config.save_retain_interval is not None

    def exported(self, iteration: int, directory: Path, checkpoint: Path | None) -> None:
        """Remember an export: in the ``checkpoint`` it was made with, where there is one."""
        template = self._config.save_hf or ""
        if not self.deletes or template.format(rollout_id=0) == template.format(rollout_id=1):
            return
        export = Export.of(directory)
        if checkpoint is None:
            self._exports[iteration] = export
        else:
            (checkpoint / EXPORT).write_text(json.dumps(asdict(export)))

    def committed(self, iteration: int) -> None:
        """Delete what ``iteration``, which is complete now, makes superfluous.

        What cannot be deleted is warned of and tried again after the next one.
        """
        if not self.deletes:
            return
        save = self._config.save
        checkpoints = dict(_own(Path(save))) if save is not None else {}
        for old in superfluous(
            checkpoints or self._exports,
            iteration,
            newest=self._config.save_retain_newest or 1,
            interval=self._config.save_retain_interval,
        ):
            try:
                if save is None:
                    self._exports[old].delete(self._kept)
                    del self._exports[old]
                else:
                    self._delete(checkpoints[old])
            except OSError as error:
                what = checkpoints[old] if save is not None else self._exports[old].directory
                logger.warning("%s could not be deleted and takes up room: %s", what, error)

    def _delete(self, checkpoint: Path) -> None:
        """Its export first: the checkpoint has the only record of it."""
        tracked = last_commit(checkpoint.parent)
        named = tracked is not None and _named_by(tracked[0]) == checkpoint.name
        if named or _holds(checkpoint, self._kept):
            return
        export = _read_export(checkpoint / EXPORT)
        if export is not None:
            export.delete(self._kept)
        delete(checkpoint)
        logger.info("deleted %s", checkpoint)


def _own(save: Path) -> Iterator[tuple[int, Path]]:
    """Committed checkpoints by iteration: real directories with a manifest, as slime writes."""
    for path in complete(save):
        match = _ITERATION.match(path.name)
        if match and (path / MANIFEST).is_file() and not path.is_symlink():
            yield int(match[1]), path


def _holds(directory: Path, kept: frozenset[Path]) -> bool:
    """Whether it, or something in it, is to be kept."""
    return any(path.is_relative_to(directory.resolve()) for path in kept)


def _named_by(tracker: str) -> str:
    text = tracker.strip()
    return name_of(int(text)) if text.isdecimal() else text


def _read_export(path: Path) -> Export | None:
    if not path.is_file():
        return None
    try:
        return Export(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        logger.warning("%s is damaged (%s): the export it tells of is kept", path, error)
        return None
