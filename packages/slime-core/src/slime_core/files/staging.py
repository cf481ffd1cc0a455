"""Checkpoints that are complete or not there, whenever the run is killed.

On disk::

    <save>/iter_0000007/                          complete, by construction
    <save>/iter_0000007/manifest.json             every file of it, with its size
    <save>/latest_checkpointed_iteration.txt      "7", replaced atomically after the directory
    <save>/.iter_0000007.partial/                 being written, or left by a killed run
    <save>/.iter_0000007.replaced/                what an overwritten iteration held, for a moment
    <save>/.iter_0000007.deleted/                 being deleted, or left by a run killed meanwhile

A checkpoint that was converted, not trained, is called ``release`` in all places instead of an
iteration, as Megatron calls it.

The driver owns these names; trainer ranks and the rollout only write files into the directory they
are given. Nothing here imports torch.
"""

import json
import logging
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slime_core.errors import CheckpointError
from slime_core.files.durable import replace_file, sync, sync_tree

logger = logging.getLogger(__name__)

TRACKER = "latest_checkpointed_iteration.txt"
MANIFEST = "manifest.json"
RELEASE: Literal["release"] = "release"
"""Megatron's name for a checkpoint that belongs to no iteration: converted, not trained."""
_LEFTOVER = re.compile(r"^\.(iter_\d{7,}|release)\.(partial|replaced|deleted)$")

type Iteration = int | Literal["release"]


def checkpoint_name(iteration: Iteration) -> str:
    """Megatron's directory name, ``iter_0000007``."""
    return iteration if isinstance(iteration, str) else f"iter_{iteration:07d}"


@dataclass(frozen=True, slots=True)
class Staging:
    """One checkpoint on its way to disk; ends by ``commit`` or ``discard``, whichever is first."""

    save: Path
    iteration: Iteration

    @property
    def directory(self) -> Path:
        """Where to write; a sibling of the final directory, so that renaming it is atomic."""
        return self.save / f".{checkpoint_name(self.iteration)}.partial"

    @property
    def final(self) -> Path:
        """What the directory is called once it is complete."""
        return self.save / checkpoint_name(self.iteration)

    def commit(self) -> Path:
        """Make everything durable, then visible, then the one to resume from; return ``final``."""
        _write_manifest(self.directory, self.iteration)
        sync_tree(self.directory)
        replaced = self.save / f".{checkpoint_name(self.iteration)}.replaced"
        if self.final.exists():
            self.final.rename(replaced)
        self.directory.rename(self.final)
        sync(self.save)
        replace_file(self.save / TRACKER, str(self.iteration))
        _remove(replaced)
        return self.final

    def discard(self) -> None:
        """Forget what was written."""
        _remove(self.directory)


def begin(save: Path, iteration: Iteration) -> Staging:
    """Open an empty directory for the checkpoint of ``iteration``.

    For saves that finish later (``--async-save``): keep the result and ``commit`` it once every
    rank has finished writing. Otherwise use ``staged``.
    """
    staging = Staging(save, iteration)
    save.mkdir(parents=True, exist_ok=True)
    _remove(staging.directory)
    staging.directory.mkdir()
    return staging


@contextmanager
def staged(save: Path, iteration: Iteration) -> Generator[Path]:
    """Yield a directory that becomes ``iter_XXXXXXX`` when the block ends without an exception."""
    staging = begin(save, iteration)
    try:
        yield staging.directory
    except BaseException:
        staging.discard()
        raise
    staging.commit()


def clean(save: Path) -> list[str]:
    """Undo what killed runs left half done in ``save``; return the names that were dealt with.

    Call it when a run starts, before ``latest``, by the directory's ``save_lock.sole_writer``.
    """
    if not save.is_dir():
        return []
    leftovers = sorted(path for path in save.iterdir() if _LEFTOVER.match(path.name))
    for path in leftovers:
        match = _LEFTOVER.match(path.name)
        assert match is not None, path
        final = save / match[1]
        if match[2] == "deleted":
            _remove_if_possible(path)
            continue
        if match[2] == "replaced" and not final.exists():
            path.rename(final)
            logger.info("restored %s, which a killed run was replacing", final)
        else:
            _remove(path)
            logger.info("removed %s, left by a killed run", path)
    if leftovers:
        sync(save)
    return [path.name for path in leftovers]


def delete(directory: Path) -> None:
    """Take a complete directory away; it loses its name first, so no part of it looks whole.

    Raises:
        OSError: something of it is left, under its own name only if all of it is.
    """
    finish_deleting(directory)
    directory.rename(_deleted(directory))
    sync(directory.parent)
    finish_deleting(directory)


def finish_deleting(directory: Path) -> None:
    """Remove what an earlier ``delete`` of ``directory`` left."""
    _remove(_deleted(directory))


def _deleted(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.deleted")


def _remove_if_possible(path: Path) -> None:
    """Nobody waits for the room it takes, so a run that begins does not end for it."""
    try:
        _remove(path)
    except OSError as error:
        logger.warning("%s could not be deleted and takes up room: %s", path, error)
    else:
        logger.info("removed %s, whose deletion was cut short", path)


def latest(load: Path, step: int | None = None, *, flag: str = "--ckpt-step") -> Path | None:
    """The checkpoint to resume from; None when ``load`` holds none.

    ``step`` (given with ``flag``) picks another iteration than the tracker file's.
    """
    tracker = load / TRACKER
    if step is not None:
        name, wanted = checkpoint_name(step), f"{flag} {step}"
    elif not tracker.is_file():
        return None
    else:
        name, wanted = _read_tracker(tracker), str(tracker)
    directory = load / name
    if not directory.is_dir():
        raise CheckpointError(
            f"{wanted} asks for {directory}, which is not there; {_present(load)}"
        )
    _check_manifest(directory)
    return directory


def last_commit(save: str | Path | None) -> tuple[str, int] | None:
    """Something that changes with every commit into ``save``; None before the first one."""
    tracker = Path(save or "") / TRACKER
    if save is None or not tracker.is_file():
        return None
    return tracker.read_text(), tracker.stat().st_mtime_ns


def complete(load: Path) -> list[Path]:
    """Every checkpoint directory of ``load``, oldest first."""
    return sorted(path for path in load.glob("iter_*") if path.is_dir())


def _present(load: Path) -> str:
    return "checkpoints present: " + (", ".join(path.name for path in complete(load)) or "none")


def _read_tracker(tracker: Path) -> str:
    text = tracker.read_text().strip()
    if text == RELEASE:
        return RELEASE
    if not text.isdecimal():
        raise CheckpointError(
            f"{tracker} holds {text[:40]!r}; it must hold the number of an iteration, or "
            f"'{RELEASE}'"
        )
    return checkpoint_name(int(text))


def _write_manifest(directory: Path, iteration: Iteration) -> None:
    files = {
        str(path.relative_to(directory)): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    text = json.dumps({"iteration": iteration, "files": files}, indent=1)
    (directory / MANIFEST).write_text(text)


def _check_manifest(directory: Path) -> None:
    """Find files that a copy lost or cut short; other programs' checkpoints have no manifest."""
    path = directory / MANIFEST
    if not path.is_file():
        return
    problems = [
        f"{name} is missing" if not (directory / name).is_file() else f"{name} is not {size} bytes"
        for name, size in _listed(path).items()
        if not (directory / name).is_file() or (directory / name).stat().st_size != size
    ]
    if problems:
        raise CheckpointError(
            f"{directory} is incomplete: {'; '.join(problems)}; {_present(directory.parent)}"
        )


def _listed(manifest: Path) -> dict[str, Any]:
    """Every file of a checkpoint, with its size."""
    try:
        found: Any = json.loads(manifest.read_text())
    except ValueError:  # of JSON, of UTF-8
        found = None
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict):
        raise CheckpointError(
            f"{manifest} does not hold a JSON object with the checkpoint's `files` and their "
            f"sizes: the checkpoint is damaged; {_present(manifest.parent.parent)}"
        )
    return files


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
