"""Writing the files of a Megatron checkpoint, chunk by chunk, with PyTorch's own serialization.

The format is that of ``torch.distributed.checkpoint``: chunks saved one behind the other in
``__<rank>_<number>.distcp``, and ``.metadata``, which says where each of them is.
"""

import contextlib
import io
import json
import os
import pickle
from collections.abc import Buffer, Generator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import (
    CURRENT_DCP_VERSION,
    DEFAULT_SUFFIX,
    _metadata_fn,  # pyright: ignore[reportPrivateUsage]
    _StorageInfo,  # pyright: ignore[reportPrivateUsage]
)
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from slime_convert.saved_model import COMMON

FILE_BYTES = 5 << 30
"""When a rank's file is followed by a second one."""
METADATA = _metadata_fn
CONFIG = "metadata.json"
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


class DistWriter:
    """A checkpoint being written into ``directory``; a context manager.

    Complete after ``finish`` only: without its last two files it is none for anybody.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[int, _File] = {}
        self._described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._stored: dict[MetadataIndex, _StorageInfo] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close(durable=error is None)

    def add(
        self,
        key: str,
        tensor: Tensor,
        *,
        offset: tuple[int, ...],
        shape: tuple[int, ...],
        rank: int,
    ) -> None:
        """Append a chunk of the tensor ``key`` of this ``shape`` to the file of ``rank``.

        Chunks of a tensor have one type and do not overlap; ``tensor`` has as many dimensions.
        """
        described = self._described.get(key)
        if described is None:
            properties = TensorProperties(dtype=tensor.dtype)
            described = TensorStorageMetadata(properties, torch.Size(shape), [])
            self._described[key] = described
        assert isinstance(described, TensorStorageMetadata), key
        assert described.properties.dtype == tensor.dtype, key
        sizes = torch.Size(tensor.shape)
        described.chunks.append(ChunkStorageMetadata(torch.Size(offset), sizes))
        index = MetadataIndex(key, offset)
        assert index not in self._stored, index
        self._stored[index] = self._file(rank).append(tensor)

    def add_object(self, key: str, value: Any, *, rank: int = 0) -> None:
        """Append plain data."""
        self._described[key] = BytesStorageMetadata()
        self._stored[MetadataIndex(key)] = self._file(rank).append([value])

    def finish(self, common: dict[str, Any]) -> None:
        """Add what is no tensor, and what makes the directory a checkpoint."""
        self.add_object(COMMON, common)
        for file in self._files.values():
            file.close(durable=True)
        metadata = Metadata(
            state_dict_metadata=dict(self._described),
            storage_data=self._stored,
            storage_meta=StorageMeta(),
            version=CURRENT_DCP_VERSION,
        )
        (self.directory / METADATA).write_bytes(pickle.dumps(metadata))
        (self.directory / CONFIG).write_text(json.dumps(_FORMAT))

    def _file(self, rank: int) -> "_File":
        file = self._files.get(rank)
        if file is None or file.size >= FILE_BYTES:
            number = 0
            if file is not None:
                file.close(durable=True)
                number = file.number + 1
            file = self._files[rank] = _File(self.directory, rank, number)
        return file


class _File:
    """One file of chunks; remembers the error of the system behind an error of PyTorch's."""

    def __init__(self, directory: Path, rank: int, number: int) -> None:
        self.number = number
        self.size = 0
        self._name = f"__{rank}_{number}{DEFAULT_SUFFIX}"
        self._file: BinaryIO = (directory / self._name).open("wb", buffering=0)
        self._error: OSError | None = None

    def append(self, value: Any) -> _StorageInfo:
        begin = self.size
        if not isinstance(value, Tensor):
            stream = io.BytesIO()
            torch.save(value, stream)
            self.write(stream.getbuffer())
        else:
            if value.untyped_storage().nbytes() != value.nbytes:
                value = value.clone()  # what is saved of a view is all of its storage
            try:
                with _no_checksums():
                    torch.save(value, self)  # pyright: ignore[reportArgumentType]
            except RuntimeError as error:
                _raise_interrupt(error)
                if self._error is not None:
                    raise self._error from None
                raise
        if self._error is not None:
            raise self._error
        return _StorageInfo(self._name, begin, self.size - begin)

    def write(self, data: Buffer) -> int:
        """What ``torch.save`` calls; errors must not pass through its native code."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self._error is None:
                done += self._file.write(view[done:])
        except OSError as error:
            self._error = error
        self.size += done
        return len(view)

    def flush(self) -> None:
        """``torch.save`` asks for it; nothing is held back."""

    def close(self, *, durable: bool) -> None:
        if self._file.closed:
            return
        if durable:
            os.fsync(self._file.fileno())
        self._file.close()


def _raise_interrupt(error: BaseException | None) -> None:
    """Raise the interrupt that ``torch.save`` answered with an error of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise error from None
        error = error.__context__


@contextlib.contextmanager
def _no_checksums() -> Generator[None]:
    """PyTorch does not look at them when it reads; computing them takes longer than writing."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
