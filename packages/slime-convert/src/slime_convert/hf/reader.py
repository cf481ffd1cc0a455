"""Reading a Hugging Face checkpoint tensor by tensor, and refusing one that is not whole."""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert.hf.checkpoint import Checkpoint, some
from slime_convert.safetensors_header import Entry, Header, read_header
from slime_convert.streaming.memory import POOL

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
"""Beside weights, too, transformers would add what it describes to them."""


class HfReader(Checkpoint):
    """A directory of safetensors files.

    Opening reads the headers of all files and no tensor. Whatever is wrong with the directory is
    a ``CheckpointError`` naming the file or tensor: at opening for files, in ``check`` for tensors
    that do not fit the model, in ``get`` for values that are not finite (``check_finite``).
    """

    def __init__(self, directory: Path | str, *, check_finite: bool = False) -> None:
        self._handles: dict[Path, Any] = {}
        self._streams: dict[Path, BinaryIO] = {}
        directory = Path(directory)
        file_of = _locate(directory)
        self._headers = {path: read_header(path) for path in sorted(set(file_of.values()))}
        entries = _entries(file_of, self._headers, directory)
        super().__init__(directory, file_of, entries, check_finite=check_finite)

    def close(self) -> None:
        """Close all files; tensors already handed out stay valid."""
        while self._handles:
            _, handle = self._handles.popitem()
            handle.__exit__(None, None, None)
        while self._streams:
            self._streams.popitem()[1].close()

    def get(self, name: str, *index: slice) -> Tensor:
        """Return a tensor, or the slice of it: ``get(name, slice(0, 8))`` reads 8 rows."""
        self._entry(name)
        path = self._file_of[name]
        try:
            handle = self._open(path)
            tensor: Tensor = handle.get_slice(name)[index] if index else handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read `{name}` from {path}: {error}") from error
        return self._checked(name, tensor)

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Return rows of a tensor in memory of its own, none of it mapped from the file.

        For reading much of a large checkpoint: what is mapped counts as memory in use until the
        file is closed. A tensor without dimensions is one row.
        """
        entry, path, dtype = self._entry(name), self._file_of[name], self.torch_dtype(name)
        tensor = POOL.empty((end - begin, *entry.shape[1:]), dtype)
        if not entry.shape:
            tensor = tensor[0]
        size = prod(entry.shape[1:]) * dtype.itemsize
        try:
            position = self._headers[path].start + entry.begin + begin * size
            read = read_into(self._stream(path), position, tensor)
        except OSError as error:
            raise CheckpointError(f"cannot read `{name}` from {path}: {error}") from error
        if not read:
            raise CheckpointError(f"{path} was cut short while it was read")
        return self._checked(name, tensor)

    def check_bytes(self) -> None:
        """Raise ``CheckpointError`` unless index and files hold the same tensors and bytes.

        A single file has no index and is compared with its own header when it is opened.
        """
        index = self.directory / INDEX
        if not index.is_file() or (self.directory / SINGLE).is_file():
            return
        unlisted = [
            f"{name} in {path.name}"
            for path, header in self._headers.items()
            for name in header.entries
            if self._file_of.get(name) != path
        ]
        if unlisted:
            raise CheckpointError(f"{index} does not list {some(unlisted)}")
        values = json.loads(index.read_text(encoding="utf-8"))
        promised = (values.get("metadata") or {}).get("total_size")
        present = sum(map(self.nbytes, self._entries))
        if promised is not None and promised != present:
            raise CheckpointError(
                f"{index} promises {promised} bytes of tensors (total_size) and its files hold "
                f"{present}: the checkpoint is not the one the index was written for"
            )

    def _open(self, path: Path) -> Any:
        if path not in self._handles:
            handle: Any = safe_open(path, framework="pt", device="cpu")
            self._handles[path] = handle.__enter__()
        return self._handles[path]

    def _stream(self, path: Path) -> BinaryIO:
        if path not in self._streams:
            self._streams[path] = path.open("rb", buffering=0)
        return self._streams[path]


def read_into(stream: BinaryIO, position: int, tensor: Tensor) -> bool:
    """Fill a tensor with a file's bytes; return False when the file ends before it is full.

    The place up to which the file was read otherwise does not matter or change: threads share it.
    """
    buffer = memoryview(tensor.view(-1).view(torch.uint8).numpy())
    filled = 0
    while filled < len(buffer):
        count = os.preadv(stream.fileno(), [buffer[filled:]], position + filled)
        if not count:
            return False
        filled += count
    return True


def listed_tensors(directory: Path) -> dict[str, Path] | None:
    """Return the file of each tensor, there or not: the single one, else as the index says.

    None where there is neither.
    """
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file():
        return dict.fromkeys(read_header(single).entries, single)
    if not index.is_file():
        return None
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: directory / file for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is damaged: {type(error).__name__}: {error}") from error


def _locate(directory: Path) -> dict[str, Path]:
    """Return which file holds each tensor."""
    if (directory / ADAPTER).is_file():
        raise CheckpointError(
            f"{directory} holds an adapter ({ADAPTER}), which is not read: merge it into its "
            "base model (PEFT: merge_and_unload, then save_pretrained), or take it out of the "
            "directory to go without it"
        )
    files = listed_tensors(directory)
    if files is None:
        raise CheckpointError(_nothing_found(directory))
    absent = sorted({path.name for path in files.values() if not path.is_file()})
    if absent:
        raise CheckpointError(f"{directory / INDEX} names files that are not there: {some(absent)}")
    return files


def _entries(
    files: Mapping[str, Path], headers: Mapping[Path, Header], directory: Path
) -> dict[str, Entry]:
    absent = [name for name, path in files.items() if name not in headers[path].entries]
    if absent:
        raise CheckpointError(
            f"{directory / INDEX} promises tensors that its files do not hold: "
            f"{some(f'{name} in {files[name].name}' for name in absent)}"
        )
    return {name: headers[path].entries[name] for name, path in files.items()}


def _nothing_found(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory} is not a directory: give that of a Hugging Face checkpoint"
    if any(directory.glob("pytorch_model*.bin")):
        return (
            f"{directory} holds pickled weights (pytorch_model*.bin): save the model again with "
            "transformers' save_pretrained, which writes safetensors"
        )
    if any(directory.glob("*.safetensors")):
        return f"{directory} holds shards and no {INDEX} that lists them"
    return f"{directory} holds neither {SINGLE} nor {INDEX}"
