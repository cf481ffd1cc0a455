"""Whole checkpoints from one format to the other, streamed: memory is bounded, not by the model."""

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from slime_core.errors import CheckpointError
from slime_core.staging import RELEASE, TRACKER, staged
from torch import Tensor

from slime_convert.dist import record
from slime_convert.dist.chunks import CHUNK_BYTES, Chunk, Layout, cut, read
from slime_convert.dist.places import Place, place
from slime_convert.dist.reader import MODEL, DistReader
from slime_convert.dist.writer import DistWriter
from slime_convert.families import Family, find, read_config
from slime_convert.hf import HfReader, write_hf
from slime_convert.hf.dtypes import TORCH_DTYPES
from slime_convert.hf.reader import INDEX, SINGLE
from slime_convert.hf.writer import GIB, TensorStream
from slime_convert.parameters import ParameterTable
from slime_convert.prefetch import prefetch
from slime_convert.rules import HfConfig, Parameter, Split, Transform
from slime_convert.transforms import to_hf

AHEAD_BYTES = 2 * CHUNK_BYTES
"""How much is read before it is written."""
WHOLE_BYTES = 2 * CHUNK_BYTES
"""Parameters up to this size are taken apart in memory, larger ones row by row."""
WEIGHTS = ("BF16", "F16", "F32")
"""Types of tensors that can be trained."""

type Progress = Callable[[int], None]
"""Told how many bytes more are done."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a config.json describes, and where Megatron keeps it."""

    family: Family
    config: HfConfig
    arguments: dict[str, Any]
    table: ParameterTable

    @classmethod
    def of(cls, directory: Path) -> "Model":
        """Return the model of ``directory``/config.json."""
        config = read_config(directory)
        family = find(config)
        return cls(family, config, family.megatron_args(config), family.parameters(config))

    def place(self, parameter: Parameter) -> Place:
        """Return where a Megatron checkpoint keeps a parameter."""
        return place(parameter, self.arguments)


def quiet(_num_bytes: int) -> None:
    """Report no progress."""


def hf_to_dist(
    source: Path, out: Path, layout: Layout | None = None, *, progress: Progress = quiet
) -> Path:
    """Write the Hugging Face checkpoint ``source`` as a Megatron checkpoint below ``out``.

    ``out`` is then a directory for --load and --ref-load. Returns the directory of the files.

    Raises:
        CheckpointError: anything is wrong with the tensors, or there is no room for them; then
            ``out`` holds no checkpoint.
    """
    layout = layout or Layout()
    model = Model.of(source)
    with HfReader(source, check_finite=True) as reader:
        return write_dist(reader, model, out, layout, progress=progress)


def write_dist(
    reader: HfReader, model: Model, out: Path, layout: Layout, *, progress: Progress = quiet
) -> Path:
    """The same for tensors that are open already."""
    reader.check(model.table)
    reader.check_bytes()
    _check_types(reader, model.table)
    _check_layout(model, layout)
    _check_target(out)
    with _errors_of(out):
        _check_room(out, size_of(reader, model.table))
        with staged(out, RELEASE) as directory, DistWriter(directory) as writer:
            _write(writer, reader, model, layout, progress)
            writer.finish(record.common(model.family, model.arguments, layout))
    return out / RELEASE


def size_of(reader: HfReader, table: ParameterTable) -> int:
    """Return the bytes of all tensors that the model needs."""
    return sum(
        prod(tensor.shape) * TORCH_DTYPES[reader.dtype(name)].itemsize
        for name, tensor in table.hf_tensors.items()
    )


@dataclass(frozen=True, slots=True)
class _Block:
    parameter: Parameter
    place: Place
    chunks: list[Chunk]
    rows: Tensor


def _write(
    writer: DistWriter, reader: HfReader, model: Model, layout: Layout, progress: Progress
) -> None:
    seen: set[str] = set()
    blocks = _blocks(reader, model, layout)
    with prefetch(blocks, size=lambda b: b.rows.nbytes, max_bytes=AHEAD_BYTES) as ready:
        for block in ready:
            where = block.place
            first = layout.tensor * _stage(where.layer, block.parameter, model, layout)
            if where.has_state and where.state_key not in seen:
                seen.add(where.state_key)
                writer.add_object(where.state_key, None, rank=first)
            shape = (*where.dims, *layout.stored_shape(block.parameter))
            for chunk in block.chunks:
                rows = block.rows
                if chunk.columns is not None:
                    rows = rows[:, slice(*chunk.columns)].contiguous()
                offset = (*where.index, *chunk.offset(block.parameter))
                sizes = ([1] * len(where.dims)) + list(rows.shape)
                writer.add(
                    where.key, rows.view(sizes), offset=offset, shape=shape, rank=first + chunk.rank
                )
            progress(block.rows.nbytes)


def _blocks(reader: HfReader, model: Model, layout: Layout) -> Iterator[_Block]:
    for parameter in model.table.exported:
        where = model.place(parameter)
        itemsize = TORCH_DTYPES[reader.dtype(parameter.hf[0].name)].itemsize
        for chunks in cut(parameter, layout, itemsize):
            rows = read(reader, parameter, chunks[0].begin, chunks[0].end)
            yield _Block(parameter, where, chunks, rows)


def _stage(layer: int | None, parameter: Parameter, model: Model, layout: Layout) -> int:
    """The pipeline stage whose files the parameter goes to."""
    if layer is not None:
        return layer * layout.pipeline // model.arguments["num_layers"]
    return 0 if parameter.name.startswith("embedding.") else layout.pipeline - 1


def dist_to_hf(
    checkpoint: Path,
    hf_config: Path,
    out: Path,
    *,
    max_shard_bytes: int = 5 * GIB,
    progress: Progress = quiet,
) -> Path:
    """Write the Megatron checkpoint in the directory ``checkpoint`` as one of Hugging Face.

    ``hf_config``: a directory with config.json, tokenizer and the other files to go with it.

    Raises:
        CheckpointError: the checkpoint is not whole or not of that model; then ``out`` is as
            before.
    """
    model = Model.of(hf_config)
    with DistReader(checkpoint, check_finite=True) as reader:
        check(reader, model)
        _check_room(out, _total(reader, model))
        with (
            carried_over(hf_config, model.table) as carried,
            prefetch(hf_tensors(reader, model), size=_ahead, max_bytes=AHEAD_BYTES) as ready,
        ):
            return write_hf(
                out,
                _reported(chain(ready, carried.items()), progress),
                source=hf_config,
                max_shard_bytes=max_shard_bytes,
                expected={*model.table.hf_tensors, *carried},
            )


@contextmanager
def carried_over(source: Path, table: ParameterTable) -> Generator[dict[str, TensorStream]]:
    """Yield the tensors that are not trained and are taken over from ``source``, by name.

    Layers for multi-token prediction, say. None where ``source`` holds no weights.
    """
    if not any((source / name).is_file() for name in (SINGLE, INDEX)):
        yield {}
        return
    with HfReader(source) as reader:
        yield {name: _carried(reader, name) for name in reader.names if table.carries(name)}


def _carried(reader: HfReader, name: str) -> TensorStream:
    shape, dtype = reader.shape(name), TORCH_DTYPES[reader.dtype(name)]
    rows = shape[0] if shape else 1
    step = max(1, CHUNK_BYTES // max(1, prod(shape[1:]) * dtype.itemsize))

    def blocks() -> Iterator[Tensor]:
        for first in range(0, rows, step):
            yield reader.rows(name, first, min(first + step, rows))

    return TensorStream(dtype, shape, blocks)


def size_in(checkpoint: Path, model: Model) -> int:
    """Return the bytes of all tensors that ``dist_to_hf`` will write, those taken over aside."""
    with DistReader(checkpoint) as reader:
        check(reader, model)
        return _total(reader, model)


def _total(reader: DistReader, model: Model) -> int:
    return sum(_nbytes(reader, model, parameter) for parameter in model.table.exported)


def check(reader: DistReader, model: Model) -> None:
    """Raise one ``CheckpointError`` for all that is missing, misshapen or of another model."""
    problems = record.differences(reader.common(), model.family, model.arguments)
    if problems:
        raise CheckpointError(
            f"{reader.directory} is a checkpoint of another model than config.json describes: "
            f"{'; '.join(problems)}"
        )
    places = [(parameter, model.place(parameter)) for parameter in model.table.exported]
    missing = sorted({where.key for _, where in places if where.key not in reader})
    misshapen = sorted(
        {
            f"{where.key} {list(reader.shape(where.key))}"
            for parameter, where in places
            if where.key in reader and not _fits(reader.shape(where.key), parameter, where)
        }
    )
    expected = {where.key for _, where in places}
    unknown = [key for key in reader.keys if key.startswith(MODEL) and key not in expected]
    found = {"missing": missing, "of another shape": misshapen, "unknown to the model": unknown}
    texts = [f"{what}: {', '.join(keys[:5])}" for what, keys in found.items() if keys]
    if texts:
        raise CheckpointError(
            f"the tensors in {reader.directory} do not fit the {model.table.model_type} model of "
            f"config.json: {'; '.join(texts)}"
        )


def hf_tensors(reader: DistReader, model: Model) -> Iterator[tuple[str, Tensor | TensorStream]]:
    """Yield every Hugging Face tensor of the model in the order of its layers."""
    for parameter in model.table.exported:
        where = model.place(parameter)
        streamable = parameter.transform in (Transform.COPY, Transform.STACK)
        if streamable and _nbytes(reader, model, parameter) > WHOLE_BYTES:
            yield from _streams(reader, parameter, where)
        else:
            full = reader.rows(where, 0, parameter.shape[0])
            yield from to_hf(parameter, full).items()


def _streams(
    reader: DistReader, parameter: Parameter, where: Place
) -> Iterator[tuple[str, TensorStream]]:
    begin = 0
    dtype = reader.dtype(where.key)
    step = max(1, CHUNK_BYTES // (prod(parameter.shape[1:]) * dtype.itemsize))
    for tensor in parameter.hf:
        end = begin + tensor.shape[0]

        def blocks(begin: int = begin, end: int = end) -> Iterator[Tensor]:
            for first in range(begin, end, step):
                yield reader.rows(where, first, min(first + step, end))

        yield tensor.name, TensorStream(dtype, tensor.shape, blocks)
        begin = end


def _nbytes(reader: DistReader, model: Model, parameter: Parameter) -> int:
    return prod(parameter.shape) * reader.dtype(model.place(parameter).key).itemsize


def _ahead(item: tuple[str, Tensor | TensorStream]) -> int:
    return item[1].nbytes if isinstance(item[1], Tensor) else 0


def _reported(
    tensors: Iterable[tuple[str, Tensor | TensorStream]], progress: Progress
) -> Iterator[tuple[str, Tensor | TensorStream]]:
    for name, tensor in tensors:
        yield name, tensor
        progress(tensor.nbytes)


def _fits(shape: tuple[int, ...], parameter: Parameter, where: Place) -> bool:
    expected = (*where.dims, *parameter.shape)
    if parameter.split is Split.VOCAB and len(shape) == len(expected):
        return shape[0] >= expected[0] and shape[1:] == expected[1:]
    return shape == expected


def _check_types(reader: HfReader, table: ParameterTable) -> None:
    problems = [
        f"{name} is {reader.dtype(name)}"
        for name in table.hf_tensors
        if name in reader and reader.dtype(name) not in WEIGHTS
    ]
    for parameter in table.exported:
        types = {reader.dtype(tensor.name) for tensor in parameter.hf if tensor.name in reader}
        if len(types) > 1:
            names = ", ".join(tensor.name for tensor in parameter.hf)
            problems.append(f"{names}, which become one tensor, are {' and '.join(sorted(types))}")
    absent = [name for name in table.hf_tensors if name not in reader]
    problems += [f"{name} is absent" for name in absent]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{reader.directory} holds tensors that cannot be trained ({', '.join(WEIGHTS)} can): "
            f"{'; '.join(problems[:5])}{more}"
        )


def _check_layout(model: Model, layout: Layout) -> None:
    layers = int(model.arguments["num_layers"])
    for flag, value in (
        ("--tensor-model-parallel-size", layout.tensor),
        ("--pipeline-model-parallel-size", layout.pipeline),
        ("--make-vocab-size-divisible-by", layout.vocab_divisible_by),
    ):
        if value < 1:
            raise CheckpointError(f"{flag} is {value}: it must be at least 1")
    if layers % layout.pipeline:
        raise CheckpointError(
            f"--pipeline-model-parallel-size is {layout.pipeline}: it must divide the model's "
            f"{layers} layers"
        )
    for parameter in model.table.exported:
        for _ in cut(parameter, layout, 2):
            break


def _check_target(out: Path) -> None:
    """A directory that holds anything but an earlier conversion is not written to."""
    ours = {RELEASE, TRACKER, f".{RELEASE}.partial", f".{RELEASE}.replaced", f".{TRACKER}.new"}
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file: choose another directory")
    others = (
        sorted(path.name for path in out.iterdir() if path.name not in ours) if out.exists() else []
    )
    if others:
        raise CheckpointError(
            f"{out} holds {others[0]}, which no conversion wrote: choose another directory"
        )


def _check_room(out: Path, num_bytes: int) -> None:
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise CheckpointError(
            f"cannot write {out}: {num_bytes / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free"
        )


@contextmanager
def _errors_of(out: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error}") from error


def bytes_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors agree in type, shape and every byte."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat = (x.contiguous().view(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(*flat)
