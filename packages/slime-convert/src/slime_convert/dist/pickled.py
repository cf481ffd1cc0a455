"""What a checkpoint says in pickles, read without letting them run anything.

Pickles are programs: they may call whatever they can name. Here they can name the few classes that
``torch.distributed.checkpoint`` writes, and nothing else.
"""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from slime_core.errors import CheckpointError
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import (
    _StorageInfo,  # pyright: ignore[reportPrivateUsage]
)

StorageInfo = _StorageInfo
_DESCRIPTION_BYTES = 1 << 20
_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_METADATA_CLASSES: dict[tuple[str, str], Any] = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): {"torch.strided": torch.strided}.__getitem__,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): str,
    ("pathlib._local", "PosixPath"): str,
} | {
    (dcp.__name__, name): getattr(dcp, name)
    for name in (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
}


class _Limited(pickle.Unpickler):
    """Finds the given names, and types of tensors."""

    def __init__(self, file: BinaryIO, known: dict[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise CheckpointError(f"it names {module}.{name}, which no checkpoint needs")


def read_metadata(path: Path) -> dcp.Metadata:
    """Return the description of a checkpoint, of ``.metadata``."""
    try:
        with path.open("rb") as file:
            metadata = _Limited(file, _METADATA_CLASSES).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused: {error}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # whatever damaged pickles lead to
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(metadata, dcp.Metadata):
        raise CheckpointError(f"{path} holds a {type(metadata).__name__}, no description")
    return metadata


@dataclass(frozen=True, slots=True)
class Saved:
    """Where the bytes of a tensor that ``torch.save`` wrote are, in row-major order."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _View:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _view(storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> _View:
    return _View(storage, offset, tuple(shape), tuple(stride), storage.dtype)


def _typed_view(storage: _Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> _View:
    return _View(storage, offset, tuple(shape), tuple(stride), rest[2])


class _Tensor(_Limited):
    """Reads the description of one tensor, and none of its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("torch._utils", "_rebuild_tensor_v3"): _typed_view,
            ("torch.storage", "UntypedStorage"): torch.uint8,
            ("collections", "OrderedDict"): OrderedDict,
        }
        super().__init__(file, known)

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, _numel = pid
        if kind != "storage":
            raise CheckpointError(f"it refers to a {kind}")
        return _Storage(str(key), dtype)


def locate(file: BinaryIO, info: _StorageInfo) -> Saved:
    """Return where in ``file`` the tensor is that was saved at the place ``info`` says."""
    part = cast("BinaryIO", _Part(file, info.offset, info.length))
    try:
        with zipfile.ZipFile(part) as archive:
            (description,) = (x for x in archive.namelist() if x.endswith("/data.pkl"))
            view = _Tensor(io.BytesIO(_bytes_of(part, archive.getinfo(description)))).load()
            root = description.removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in archive.namelist():
                _check_order(_bytes_of(part, archive.getinfo(order)))
            record = archive.getinfo(f"{root}data/{view.storage.key}")
    except CheckpointError as error:
        raise CheckpointError(f"a tensor in {file.name} is refused: {error}") from None
    except Exception as error:  # whatever damaged files lead to
        raise CheckpointError(
            f"{file.name} is damaged at byte {info.offset}: {type(error).__name__}: {error}"
        ) from error
    size = prod(view.shape) * view.dtype.itemsize
    begin = view.offset * view.dtype.itemsize
    dense = view.stride == torch.empty(view.shape, device="meta").stride() or size == 0
    if not dense or record.compress_type or begin + size > record.file_size:
        raise CheckpointError(f"{file.name} is damaged at byte {info.offset}: no plain tensor")
    return Saved(view.dtype, view.shape, info.offset + _data_begin(part, record) + begin)


def _check_order(order: bytes) -> None:
    if order != b"little":
        raise CheckpointError("it was written on a big-endian machine")


def _bytes_of(part: BinaryIO, record: zipfile.ZipInfo) -> bytes:
    """The bytes of a small record; checksums may be absent, so they are not compared."""
    if record.compress_type or record.file_size > _DESCRIPTION_BYTES:
        raise CheckpointError("it is not stored as PyTorch stores tensors")
    part.seek(_data_begin(part, record))
    return part.read(record.file_size)


def _data_begin(part: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its header, a name and padding."""
    part.seek(record.header_offset + 26)
    lengths = part.read(4)
    name, extra = lengths[0] | lengths[1] << 8, lengths[2] | lengths[3] << 8
    return record.header_offset + 30 + name + extra


class _Part(io.RawIOBase):
    """A range of a file as a file."""

    def __init__(self, file: BinaryIO, begin: int, length: int) -> None:
        self._file, self._begin, self._length, self._at = file, begin, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._at, self._length)[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = max(0, min(len(buffer), self._length - self._at))
        data = os.pread(self._file.fileno(), room, self._begin + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
