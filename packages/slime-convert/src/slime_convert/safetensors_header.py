"""The header of a safetensors file, read without loading any tensor.

Layout: 8 bytes header length n (little endian), n bytes of JSON (which spaces may follow), then
the tensors' bytes without gaps. Source: https://github.com/huggingface/safetensors#format
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from operator import index
from pathlib import Path
from typing import Any

from slime_core.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
METADATA = "__metadata__"
_GIT_LFS = b"version https://git-lfs"
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its type, its shape and where its bytes are, from the data's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says it holds."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    start: int = 0
    """Where in the file the tensors' bytes begin."""


def read_header(path: Path) -> Header:
    """Return the header of a file whose size agrees with it.

    A file that is cut short, has trailing bytes or is no safetensors file at all is a
    ``CheckpointError`` that names it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if prefix == _GIT_LFS[:8] and file.read(len(_GIT_LFS) - 8) == _GIT_LFS[8:]:
                raise CheckpointError(
                    f"{path} is a pointer to a file in Git LFS: fetch that with `git lfs pull`"
                )
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(f"{path} is cut short or not a safetensors file")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    header = _parse(path, text, 8 + length)
    _check_extent(path, header, size - 8 - length)
    return header


def encode_header(entries: Mapping[str, Entry], metadata: Mapping[str, str], size: int) -> bytes:
    """Return the length prefix and the JSON, padded with spaces to ``size`` bytes in all."""
    values: dict[str, Any] = {METADATA: dict(metadata)}
    for name, entry in entries.items():
        offsets = [entry.begin, entry.end]
        values[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
    text = json.dumps(values, separators=(",", ":")).encode()
    assert len(text) <= size - 8, "the space kept for the header is too small"
    return struct.pack("<Q", size - 8) + text.ljust(size - 8)


def _parse(path: Path, text: bytes, start: int) -> Header:
    try:
        values: dict[str, Any] = json.loads(text)
        metadata: dict[str, str] = values.pop(METADATA, None) or {}
        entries = {name: _entry(value) for name, value in values.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error}") from error
    return Header(entries, metadata, start)


def _entry(value: Mapping[str, Any]) -> Entry:
    begin, end = map(index, value["data_offsets"])
    if not isinstance(value["dtype"], str):
        raise TypeError(f"a type is {value['dtype']!r}")
    shape = tuple(map(index, value["shape"]))
    if begin > end or any(size < 0 for size in shape):
        raise ValueError(f"a tensor has the shape {list(shape)} from {begin} to {end}")
    return Entry(value["dtype"], shape, begin, end)


def _check_extent(path: Path, header: Header, num_bytes: int) -> None:
    position = 0
    for name, entry in sorted(header.entries.items(), key=lambda x: (x[1].begin, x[1].end)):
        bits = BITS.get(entry.dtype)
        length = entry.end - entry.begin
        if entry.begin != position or (bits and length * 8 != prod(entry.shape) * bits):
            raise CheckpointError(f"the header of {path} is damaged at `{name}`")
        position = entry.end
    if position != num_bytes:
        raise CheckpointError(
            f"{path} holds {num_bytes} bytes of tensors and its header promises {position}: "
            "the file was not written or downloaded completely"
        )
