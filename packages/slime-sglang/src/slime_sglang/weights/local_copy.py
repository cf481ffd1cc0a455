"""The copy of the weights on an engine's machine, kept up to date by what is published.

Every version is a directory that appears complete or not at all, made of the one before it; a lock
lets one process of a machine do the work, the others find it done. A crash leaves the old version.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from slime_core.errors import WeightSyncError
from torch import Tensor

from slime_sglang.weights.difference import apply, bytes_of, checksum
from slime_sglang.weights.disk_format import DIGESTS_FILE
from slime_sglang.weights.version_index import Change, VersionIndex, read_index

_LOCK_S = 500.0
"""Less than a request to load weights may take."""
_LOCK_POLL_S = 0.02

NO_BASE = "needs the whole weights"
"""In the message of an engine that has not got the version that differences are to."""


def bring(source: Path, index: VersionIndex) -> Path:
    """The directory of a whole version on this machine that holds what ``source`` publishes.

    Raises:
        WeightSyncError: files are damaged, or the base of the differences is not here.
    """
    local = Path(index.local_checkpoint_dir)
    local.mkdir(parents=True, exist_ok=True)
    target = _place(local, index.version)
    with _locked(local):
        if _holds(target, index.result):
            return target
        shutil.rmtree(target, ignore_errors=True)
        for left in local.glob(".weight_v*.partial"):  # by an engine that was killed
            shutil.rmtree(left, ignore_errors=True)
        partial = local / f".{target.name}.partial"
        partial.mkdir()
        try:
            if index.kind == "full":
                for path in source.glob("*.safetensors"):
                    shutil.copyfile(path, partial / path.name)
            else:
                _change(_base(local, index), source, partial, index)
                shutil.copyfile(source / DIGESTS_FILE, partial / DIGESTS_FILE)
        except (OSError, SafetensorError) as error:
            raise WeightSyncError(f"cannot bring {source} into {local}: {error}") from error
        replace(index, kind="full", base="", base_version=-1, changes={}).write(partial)
        partial.rename(target)
        for old in local.glob("weight_v*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    return target


def _place(local: Path, version: int) -> Path:
    return local / f"weight_v{version:06d}"


def _holds(directory: Path, result: str) -> bool:
    found = read_index(directory)
    return found is not None and found.result == result


def _base(local: Path, index: VersionIndex) -> Path:
    base = _place(local, index.base_version)
    if not _holds(base, index.base):
        raise WeightSyncError(
            f"{local} has no version {index.base_version} that the differences are to: "
            f"this engine {NO_BASE}"
        )
    return base


def _change(base: Path, source: Path, partial: Path, index: VersionIndex) -> None:
    for path in base.glob("bucket-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names: list[str] = file.keys()
            changes = {name: index.changes[name] for name in names if name in index.changes}
        if changes:
            tensors = load_file(path)
            for file_name in {change.file for change in changes.values()}:
                _apply_file(source / file_name, tensors, changes, index)
            save_file(tensors, partial / path.name)
        else:
            _link(path, partial / path.name)


def _apply_file(
    path: Path, tensors: dict[str, Tensor], changes: Mapping[str, Change], index: VersionIndex
) -> None:
    """Change those of ``tensors`` whose differences are in ``path``."""
    with safe_open(path, framework="pt") as file:
        for name in set(file.keys()) & changes.keys():
            old, change = tensors[name], changes[name]
            difference = file.get_tensor(name).numpy().tobytes()
            new = apply(bytes_of(old), difference, change.itemsize, index.delta_encoding)
            found = checksum(new, index.checksum_format)
            if found != change.checksum:
                raise WeightSyncError(
                    f"tensor `{name}` of {path} has the {index.checksum_format} checksum {found} "
                    f"after its difference was applied, expected {change.checksum}"
                )
            tensors[name] = torch.from_numpy(new).view(old.dtype).reshape(old.shape)


def _link(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # the file system has no hard links
        shutil.copyfile(path, new)


@contextmanager
def _locked(local: Path) -> Generator[None]:
    """One process at a time; the system releases the lock of one that ends."""
    with (local / ".lock").open("w") as file:
        deadline = time.monotonic() + _LOCK_S
        while not _taken(file):
            if time.monotonic() > deadline:
                raise WeightSyncError(
                    f"another process has held {file.name} for {_LOCK_S:.0f} s: an engine of this "
                    "machine hangs while it brings a version into its copy"
                )
            time.sleep(_LOCK_POLL_S)
        yield


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
