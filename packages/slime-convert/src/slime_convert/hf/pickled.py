"""Reading checkpoints that are pickled (``pytorch_model*.bin``, ``*.pt``), if one insists.

Pickles are programs. Only tensors are let in (``weights_only=True`` of ``torch.load``); a file that
asks for anything else is refused.
"""

import json
from pathlib import Path
from typing import Any

import torch
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert.hf.checkpoint import Checkpoint
from slime_convert.hf.dtypes import DTYPES
from slime_convert.hf.reader import INDEX, SINGLE, HfReader
from slime_convert.safetensors_header import Entry

INDEX_NAMES = ("pytorch_model.bin.index.json",)
SUFFIXES = (".bin", ".pt", ".pth")


def open_checkpoint(
    directory: Path, *, check_finite: bool = False, allow_pickle: bool = False
) -> Checkpoint:
    """Return a reader of the safetensors files, or of pickled ones where that is allowed."""
    pickled = _pickled_files(directory)
    safe = any((directory / name).is_file() for name in (SINGLE, INDEX))
    if safe or not pickled:
        return HfReader(directory, check_finite=check_finite)
    if not allow_pickle:
        raise CheckpointError(
            f"{directory} holds pickled weights ({pickled[0].name}): give --allow-pickle to read "
            "tensors, and nothing else, from them"
        )
    return PickledReader(directory, check_finite=check_finite)


class PickledReader(Checkpoint):
    """A directory of pickled files, one of which is mapped into memory at a time."""

    def __init__(self, directory: Path | str, *, check_finite: bool = False) -> None:
        directory = Path(directory)
        self._tensors: dict[Path, dict[str, Tensor]] = {}
        file_of: dict[str, Path] = {}
        entries: dict[str, Entry] = {}
        for path in _listed(directory):
            for name, tensor in self._load(path).items():
                if name in file_of:
                    raise CheckpointError(f"{path} and {file_of[name]} both hold `{name}`")
                file_of[name], entries[name] = path, _entry(path, name, tensor)
        super().__init__(directory, file_of, entries, check_finite=check_finite)

    def get(self, name: str, *index: slice) -> Tensor:
        """Return a tensor, or the slice of it."""
        self._entry(name)
        return self._checked(name, self._load(self._file_of[name])[name][index])

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Return a copy of rows of a tensor."""
        if not self.shape(name):
            return self.get(name).clone()
        return self.get(name, slice(begin, end)).clone(memory_format=torch.contiguous_format)

    def check_bytes(self) -> None:
        """Nothing says how many bytes there ought to be."""

    def close(self) -> None:
        """Forget the files."""
        self._tensors.clear()

    def _load(self, path: Path) -> dict[str, Tensor]:
        if path not in self._tensors:
            self._tensors.clear()  # one file in memory at a time
            self._tensors[path] = _load(path)
        return self._tensors[path]


def _entry(path: Path, name: str, tensor: Tensor) -> Entry:
    if tensor.dtype not in DTYPES:
        raise CheckpointError(
            f"`{name}` in {path} is {tensor.dtype}: tensors of this type are not read"
        )
    return Entry(DTYPES[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        values: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever damaged or refused files lead to
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read safely: {reason}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not tensors by name")
    wrong = [name for name, value in values.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{path} holds `{wrong[0]}`, which is no tensor")
    return values


def _listed(directory: Path) -> list[Path]:
    """The files of the index, or all there are."""
    for name in INDEX_NAMES:
        if not (directory / name).is_file():
            continue
        try:
            weight_map = json.loads((directory / name).read_text())["weight_map"]
            files = [directory / file for file in sorted(set(weight_map.values()))]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{directory / name} is damaged: {error}") from error
        absent = [path.name for path in files if not path.is_file()]
        if absent:
            raise CheckpointError(f"{directory / name} names files that are not there: {absent}")
        return files
    return _pickled_files(directory)


def _pickled_files(directory: Path) -> list[Path]:
    names = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    return sorted(
        path for path in directory.glob("*") if path.suffix in SUFFIXES and path.name not in names
    )
