"""Reading a Hugging Face checkpoint tensor by tensor, and refusing one that is not whole."""

import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from safetensors import SafetensorError, safe_open
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert.finite import all_finite
from slime_convert.hf.dtypes import TORCH_DTYPES
from slime_convert.hf.header import Entry, Header, read_header
from slime_convert.memory import POOL
from slime_convert.parameters import ParameterTable

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHOWN = 5


class HfReader:
    """An open checkpoint directory; a context manager, used by one process.

    Opening reads the headers of all files and no tensor. Whatever is wrong with the directory is
    a ``CheckpointError`` naming the file or tensor: at opening for files, in ``check`` for tensors
    that do not fit the model, in ``get`` for values that are not finite (``check_finite``).
    """

    def __init__(self, directory: Path | str, *, check_finite: bool = False) -> None:
        self.directory = Path(directory)
        self._check_finite = check_finite
        self._handles: dict[Path, Any] = {}
        self._streams: dict[Path, BinaryIO] = {}
        self._file_of = _locate(self.directory)
        self._headers = {path: read_header(path) for path in sorted(set(self._file_of.values()))}
        self._entries = _entries(self._file_of, self._headers, self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; tensors already handed out stay valid."""
        while self._handles:
            _, handle = self._handles.popitem()
            handle.__exit__(None, None, None)
        while self._streams:
            self._streams.popitem()[1].close()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, sorted."""
        return tuple(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """Return the type of a tensor as safetensors files spell it, such as "BF16"."""
        return self._entry(name).dtype

    def torch_dtype(self, name: str) -> torch.dtype:
        """Return the type of a tensor as PyTorch calls it, or refuse one that is not known."""
        dtype = TORCH_DTYPES.get(self.dtype(name))
        if dtype is None:
            raise CheckpointError(
                f"`{name}` in {self._file_of[name]} is {self.dtype(name)}: tensors of this type "
                "are not read"
            )
        return dtype

    def nbytes(self, name: str) -> int:
        """Return how many bytes a tensor takes."""
        entry = self._entry(name)
        return entry.end - entry.begin

    @property
    def files(self) -> tuple[Path, ...]:
        """The files the tensors are in."""
        return tuple(sorted(set(self._file_of.values())))

    @property
    def num_files(self) -> int:
        """How many files the tensors are in."""
        return len(self.files)

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

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        if self._check_finite and not all_finite(tensor):
            raise CheckpointError(
                f"`{name}` in {self._file_of[name]} holds values that are NaN or infinite"
            )
        return tensor

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
            raise CheckpointError(f"{index} does not list {_some(unlisted)}")
        values = json.loads(index.read_text(encoding="utf-8"))
        promised = (values.get("metadata") or {}).get("total_size")
        present = sum(map(self.nbytes, self._entries))
        if promised is not None and promised != present:
            raise CheckpointError(
                f"{index} promises {promised} bytes of tensors (total_size) and its files hold "
                f"{present}: the checkpoint is not the one the index was written for"
            )

    def check(self, table: ParameterTable) -> None:
        """Raise one ``CheckpointError`` for all tensors that are missing, misshapen or unknown."""
        expected = table.hf_tensors
        missing = [
            name for name in expected if name not in self._entries and name not in table.optional
        ]
        misshapen = [
            f"{name} {list(self.shape(name))} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in self._entries and self.shape(name) != tensor.shape
        ]
        unknown = [
            name for name in self._entries if name not in expected and not table.ignores(name)
        ]
        problems = [
            f"{what}: {_some(items)}"
            for what, items in (
                ("missing", missing),
                ("of another shape", misshapen),
                ("unknown to the model", unknown),
            )
            if items
        ]
        if problems:
            raise CheckpointError(
                f"the tensors in {self.directory} do not fit the {table.model_type} model of its "
                f"config.json: {'; '.join(problems)}"
            )

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.directory} holds no tensor `{name}`")
        return self._entries[name]

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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged: {type(error).__name__}: {error}") from error


def _locate(directory: Path) -> dict[str, Path]:
    """Return which file holds each tensor."""
    files = listed_tensors(directory)
    if files is None:
        raise CheckpointError(_nothing_found(directory))
    absent = sorted({path.name for path in files.values() if not path.is_file()})
    if absent:
        raise CheckpointError(
            f"{directory / INDEX} names files that are not there: {_some(absent)}"
        )
    return files


def _entries(
    files: Mapping[str, Path], headers: Mapping[Path, Header], directory: Path
) -> dict[str, Entry]:
    absent = [name for name, path in files.items() if name not in headers[path].entries]
    if absent:
        raise CheckpointError(
            f"{directory / INDEX} promises tensors that its files do not hold: "
            f"{_some(f'{name} in {files[name].name}' for name in absent)}"
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


def _some(items: Iterable[str]) -> str:
    """Return the first few items as text, and how many there are beyond."""
    texts = list(items)
    rest = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
