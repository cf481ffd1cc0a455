"""Reading a Megatron checkpoint, row by row, and refusing one that is not whole."""

import io
import json
import os
from collections import defaultdict
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from slime_core.errors import CheckpointError
from slime_core.files.staging import TRACKER, latest
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from slime_convert.dist.pickled import Saved, StorageInfo, locate, read_metadata
from slime_convert.dist.places import Place
from slime_convert.dist.writer import CONFIG, METADATA
from slime_convert.hf.reader import read_into
from slime_convert.saved_model import COMMON
from slime_convert.streaming.finite import all_finite
from slime_convert.streaming.memory import POOL

MODEL_PREFIXES = ("decoder.", "embedding.", "output_layer.", "mtp.")
"""How the names of a model's tensors begin, and those of an optimizer's do not."""
OPTIMIZER_PREFIXES = ("optimizer.", "chained_")


def checkpoint_in(directory: Path, step: int | None = None) -> Path:
    """Return ``directory`` if it is a checkpoint itself, else its newest one or that of ``step``.

    Raises:
        CheckpointError: it holds none, or its files are not as they were written.
    """
    if step is None and (directory / CONFIG).is_file():
        return directory
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory: give that of a Megatron checkpoint")
    found = latest(directory, step, flag="--step")
    if found is not None and (found / CONFIG).is_file():
        return found
    if found is not None:
        raise CheckpointError(f"{found} has no {CONFIG}: it is no torch_dist checkpoint")
    raise CheckpointError(
        f"{directory} is no Megatron checkpoint in the torch_dist format: it has neither {CONFIG} "
        f"nor {TRACKER}"
    )


@dataclass(frozen=True, slots=True)
class _Chunk:
    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    info: StorageInfo


class DistReader:
    """An open checkpoint directory; a context manager, used by one process, in any of its threads.

    Opening reads ``.metadata`` and compares it with the sizes of the files. No tensor is read
    before it is asked for, and nothing pickled is ever run. A file is open only while it is read:
    there may be more of them than a process may have open.
    """

    def __init__(self, directory: Path | str, *, check_finite: bool = False) -> None:
        self.directory = Path(directory)
        self._check_finite = check_finite
        self._saved: dict[tuple[str, int], Saved] = {}
        _check_format(self.directory)
        metadata = read_metadata(self.directory / METADATA)
        self._tensors = {
            key: described
            for key, described in metadata.state_dict_metadata.items()
            if isinstance(described, TensorStorageMetadata)
        }
        stored: dict[Any, StorageInfo] = metadata.storage_data or {}
        self._objects = {index.fqn: info for index, info in stored.items() if not index.offset}
        infos = {(index.fqn, tuple(index.offset or ())): info for index, info in stored.items()}
        self._chunks = {
            key: _chunks(key, described, infos, self.directory)
            for key, described in self._tensors.items()
        }
        _check_files(self.directory, stored.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._saved.clear()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all tensors, sorted."""
        return tuple(sorted(self._tensors))

    @property
    def objects(self) -> tuple[str, ...]:
        """The names of all that is no tensor, sorted."""
        return tuple(sorted(self._objects))

    @property
    def num_files(self) -> int:
        """How many files the tensors are in."""
        return len({chunk.info.relative_path for row in self._chunks.values() for chunk in row})

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a tensor, with the leading dimensions of layers and experts."""
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        """Return the type of a tensor."""
        return self._tensors[key].properties.dtype

    def __contains__(self, key: str | None) -> bool:
        """Whether there is a tensor of this key."""
        return key in self._tensors

    def common(self) -> dict[str, Any]:
        """Return what the checkpoint holds beside tensors; nothing for an older format."""
        info = self._objects.get(COMMON)
        if info is None:
            return {}
        with self._opened(info.relative_path) as file:
            data = os.pread(file.fileno(), info.length, info.offset)
        try:
            values = torch.load(io.BytesIO(data), weights_only=True)
            return dict(values[0])
        except Exception as error:  # whatever damaged files lead to
            raise CheckpointError(
                f"{COMMON} in {self.directory / info.relative_path} cannot be read: "
                f"{type(error).__name__}: {error}"
            ) from error

    def rows(self, place: Place, begin: int, end: int) -> Tensor:
        """Return rows of the parameter at ``place``."""
        shape = self.shape(place.key)[len(place.index) :]
        wanted = POOL.empty((end - begin, *shape[1:]), self.dtype(place.key))
        filled = 0
        for chunk in self._chunks[place.key]:
            if not _holds(chunk, place.index):
                continue
            offset, sizes = chunk.offset[len(place.index) :], chunk.sizes[len(place.index) :]
            first, last = max(begin, offset[0]), min(end, offset[0] + sizes[0])
            if first >= last:
                continue
            part = self._read(place.key, chunk, first - offset[0], last - offset[0], place.index)
            box = [slice(first - begin, last - begin)]
            box += [slice(o, o + s) for o, s in zip(offset[1:], sizes[1:], strict=True)]
            if last - first == end - begin and part.shape == wanted.shape:
                wanted = part  # all of it
            else:
                wanted[tuple(box)] = part
            filled += part.numel()
        if filled != wanted.numel():
            raise CheckpointError(
                f"the chunks of `{place.key}` in {self.directory} hold {filled} values of rows "
                f"{begin} to {end} at {list(place.index)}, not {wanted.numel()}"
            )
        if self._check_finite and not all_finite(wanted):
            raise CheckpointError(
                f"`{place.key}` in {self.directory} holds values that are NaN or infinite at "
                f"{list(place.index)}"
            )
        return wanted

    def _read(
        self, key: str, chunk: _Chunk, first: int, last: int, index: tuple[int, ...]
    ) -> Tensor:
        """Rows of a chunk, or of the one of its stacked parameters at ``index``."""
        sizes = chunk.sizes[len(index) :]
        before = 0
        for at, begin, size in zip(index, chunk.offset, chunk.sizes, strict=False):
            before = before * size + at - begin
        part = POOL.empty((last - first, *sizes[1:]), self.dtype(key))
        with self._opened(chunk.info.relative_path) as file:
            saved = self._located(file, chunk.info)
            if saved.dtype != self.dtype(key) or prod(saved.shape) != prod(chunk.sizes):
                raise CheckpointError(
                    f"`{key}` in {file.name} is {list(saved.shape)} of {saved.dtype}, and "
                    f"{METADATA} says {list(chunk.sizes)} of {self.dtype(key)}"
                )
            start = (before * prod(sizes) + first * prod(sizes[1:])) * saved.dtype.itemsize
            if not read_into(file, saved.begin + start, part):
                raise CheckpointError(f"{file.name} was cut short while it was read")
        return part

    def _located(self, file: BinaryIO, info: StorageInfo) -> Saved:
        key = (info.relative_path, info.offset)
        if key not in self._saved:
            if getattr(info, "transform_descriptors", None):
                raise CheckpointError(
                    f"{info.relative_path} is compressed: save without extensions"
                )
            self._saved[key] = locate(file, info)
        return self._saved[key]

    @contextmanager
    def _opened(self, name: str) -> Generator[BinaryIO]:
        path = self.directory / name
        try:
            with path.open("rb", buffering=0) as file:
                yield file
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _check_format(directory: Path) -> None:
    try:
        backend = json.loads((directory / CONFIG).read_text()).get("sharded_backend")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{directory / CONFIG} cannot be read: {error}") from error
    if backend != "torch_dist":
        raise CheckpointError(f"{directory} is in the format {backend!r}; torch_dist can be read")


def _chunks(
    key: str,
    described: TensorStorageMetadata,
    infos: dict[tuple[str, tuple[int, ...]], StorageInfo],
    directory: Path,
) -> tuple[_Chunk, ...]:
    found: list[_Chunk] = []
    for chunk in described.chunks:
        info = infos.get((key, tuple(chunk.offsets)))
        if info is None:
            raise CheckpointError(
                f"{directory / METADATA} does not say where `{key}` at {list(chunk.offsets)} is"
            )
        found.append(_Chunk(tuple(chunk.offsets), tuple(chunk.sizes), info))
    values, expected = sum(prod(c.sizes) for c in found), prod(described.size)
    if values != expected:
        raise CheckpointError(
            f"{directory / METADATA} promises {expected} values of `{key}` and has places of "
            f"{values}: the checkpoint is not whole"
        )
    return tuple(found)


def _holds(chunk: _Chunk, index: tuple[int, ...]) -> bool:
    return all(
        begin <= at < begin + size
        for at, begin, size in zip(index, chunk.offset, chunk.sizes, strict=False)
    )


def _check_files(directory: Path, infos: Iterable[StorageInfo]) -> None:
    ends: dict[str, int] = defaultdict(int)
    for info in infos:
        name = info.relative_path
        if Path(name).name != name:
            raise CheckpointError(f"{directory / METADATA} names a file elsewhere: {name!r}")
        ends[name] = max(ends[name], info.offset + info.length)
    problems: list[str] = []
    for name, end in sorted(ends.items()):
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size < end:
            problems.append(f"{name} has {path.stat().st_size} bytes of {end}")
    if problems:
        raise CheckpointError(f"{directory} is incomplete: {'; '.join(problems)}")
