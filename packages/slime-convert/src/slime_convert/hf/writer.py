"""Writing a Hugging Face checkpoint: tensors are streamed, the directory appears all at once.

Everything goes into a hidden sibling of the target and reaches the disk before the sibling is
renamed: a target directory is complete or not there, whenever the process dies. Memory stays at
one tensor, because every file keeps room for its header and gets it last.
"""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from slime_core.errors import CheckpointError
from slime_core.files.durable import sync
from torch import Tensor

from slime_convert.hf.dtypes import DTYPES
from slime_convert.hf.reader import INDEX, SINGLE
from slime_convert.hf.stream import NamedTensor, TensorStream
from slime_convert.safetensors_header import Entry, encode_header
from slime_convert.target.replaceable import WRITER, check_target

GIB = 1 << 30
HEADER_BYTES = 1 << 18
"""Room for the header at the start of each file, 1,000 tensors or more; then a new file begins."""
ENTRY_BYTES = 120
"""What a header entry needs beside its name and shape: keys, type, two offsets."""
METADATA = {"format": "pt", "writer": WRITER}
ASSET_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")


def write_hf(
    directory: Path | str,
    tensors: Iterable[NamedTensor],
    *,
    source: Path | str,
    max_shard_bytes: int = 5 * GIB,
    expected: Collection[str] | None = None,
    config_changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of ``tensors`` and return its directory.

    config.json (its dtype set to that of most of the bytes), tokenizer and further assets come from
    ``source``, which itself is never written to. A directory written by an earlier call is
    replaced, any other one that is not empty is refused, and so is one that holds directories;
    of a link, what it leads to is replaced. ``expected``: all names that must come; one missing is
    an error and nothing appears. ``config_changes`` replace values of config.json; None removes
    one.
    """
    directory, source = Path(directory).absolute(), Path(source)
    check_target(directory, source)
    final = directory.resolve()
    staging = final.with_name(f".{final.name}.incomplete")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        staging.mkdir(parents=True)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, staging, ignore_errors=True)
            with _Shards(staging, max_shard_bytes) as shards:
                for name, tensor in tensors:
                    shards.add(name, tensor)
            _check_names(directory, shards.file_of, expected)
            _copy_assets(source, staging, shards.main_dtype, config_changes or {})
            _name_files(staging, shards)
            sync(staging)
            _replace(staging, final)
            undo.pop_all()
    except OSError as error:
        raise CheckpointError(f"cannot write {directory}: {error}") from error
    return directory


@dataclass(slots=True)
class _Shards:
    """The files of a checkpoint being written, numbered from 1; the last one is open."""

    directory: Path
    max_bytes: int
    file_of: dict[str, int] = field(default_factory=dict[str, int])
    bytes_of: Counter[torch.dtype] = field(default_factory=Counter[torch.dtype])
    num_files: int = 0
    _file: BinaryIO | None = None
    _entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    _header_bytes: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None and error is not None:
            self._file.close()
        else:
            self._finish()

    @property
    def num_bytes(self) -> int:
        return self.bytes_of.total()

    @property
    def main_dtype(self) -> torch.dtype | None:
        """That of more than half of the bytes: some models keep a few tensors in float32."""
        return next((t for t, size in self.bytes_of.items() if 2 * size > self.num_bytes), None)

    def path(self, number: int) -> Path:
        return self.directory / f"{number}.part"

    def add(self, name: str, tensor: Tensor | TensorStream) -> None:
        if name in self.file_of:
            raise CheckpointError(f"`{name}` was given twice")
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"`{name}` is {tensor.dtype}, which safetensors files do not hold"
            )
        size = tensor.nbytes
        header = len(json.dumps(name)) + 12 * len(tensor.shape) + ENTRY_BYTES
        file = self._room(size, header)
        begin = file.tell() - HEADER_BYTES
        for block in (tensor,) if isinstance(tensor, Tensor) else tensor.blocks():
            file.write(_bytes(block))
        assert file.tell() - HEADER_BYTES == begin + size, name
        self._entries[name] = Entry(DTYPES[tensor.dtype], tuple(tensor.shape), begin, begin + size)
        self._header_bytes += header
        self.file_of[name] = self.num_files
        self.bytes_of[tensor.dtype] += size

    def _room(self, size: int, header: int) -> BinaryIO:
        """Return the open file if it has room for the tensor, else a new one."""
        if self._file is not None and self._entries:
            full = self._file.tell() - HEADER_BYTES + size > self.max_bytes
            if full or self._header_bytes + header > HEADER_BYTES:
                self._finish()
        if self._file is None:
            self.num_files += 1
            self._file = self.path(self.num_files).open("wb")
            self._file.seek(HEADER_BYTES)
            self._header_bytes = 2 * ENTRY_BYTES
        return self._file

    def _finish(self) -> None:
        if self._file is None:
            return
        with self._file as file:
            file.seek(0)
            file.write(encode_header(self._entries, METADATA, HEADER_BYTES))
            _flush(file)
        self._file, self._entries = None, {}


def _bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order, without a copy where they lie so."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def _name_files(staging: Path, shards: _Shards) -> None:
    """Give the files the names readers look for, and write the index of more than one."""
    total = shards.num_files
    if total == 1:
        shards.path(1).rename(staging / SINGLE)
        return
    final = {n: f"model-{n:05d}-of-{total:05d}.safetensors" for n in range(1, total + 1)}
    for number, name in final.items():
        shards.path(number).rename(staging / name)
    weight_map = {name: final[number] for name, number in sorted(shards.file_of.items())}
    index = {"metadata": {"total_size": shards.num_bytes}, "weight_map": weight_map}
    _write_text(staging / INDEX, json.dumps(index, indent=2) + "\n")


def _copy_assets(
    source: Path, staging: Path, dtype: torch.dtype | None, changes: Mapping[str, Any]
) -> None:
    for path in sorted(source.iterdir()):
        wanted = path.suffix in ASSET_SUFFIXES or path.name.startswith("LICENSE")
        if not wanted or not path.is_file() or path.name.endswith(".index.json"):
            continue
        if path.name == "config.json":
            _write_text(staging / path.name, _changed(path, dtype, changes))
        else:
            shutil.copyfile(path, staging / path.name)
            with (staging / path.name).open("rb+") as file:
                _flush(file)


def _changed(path: Path, dtype: torch.dtype | None, changes: Mapping[str, Any]) -> str:
    """Return config.json saying the dtype that was written: loaders cast to what it says."""
    text = path.read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    written = None if dtype is None else str(dtype).removeprefix("torch.")
    changed = {
        key: written
        for key in ("dtype", "torch_dtype")
        if written and key in values and values[key] != written
    } | dict(changes)
    removed = {key for key, value in changed.items() if value is None}
    if all(key in values and values[key] == value for key, value in changed.items()):
        return text
    kept = {key: value for key, value in (values | changed).items() if key not in removed}
    return json.dumps(kept, indent=2) + "\n"


def _check_names(directory: Path, given: Collection[str], expected: Collection[str] | None) -> None:
    if not given:
        raise CheckpointError(f"there are no tensors to write to {directory}")
    if expected is None or set(expected) == set(given):
        return
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    raise CheckpointError(
        f"the tensors for {directory} are not those of the model: "
        f"missing {missing[:5]}, unknown {unknown[:5]}"
    )


def _replace(staging: Path, directory: Path) -> None:
    """Put the finished directory in the place of what may be there from an earlier call."""
    old = directory.with_name(f".{directory.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if directory.is_dir():
        directory.rename(old)
    try:
        staging.rename(directory)
    except BaseException:
        if old.is_dir():
            old.rename(directory)
        raise
    sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write(text.encode())
        _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
