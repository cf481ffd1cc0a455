"""Hugging Face to Megatron: whole checkpoints, a few parameters in memory at a time.

First everything that can be refused is looked for, then the tensors are read in the order of the
layers, cut and written, and last the directory becomes a checkpoint.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slime_core.errors import CheckpointError
from slime_core.files.staging import RELEASE, TRACKER, clean, staged
from torch import Tensor

from slime_convert.dist import record
from slime_convert.dist.chunks import Chunk, Layout, cut, read
from slime_convert.dist.model import Model
from slime_convert.dist.places import Place
from slime_convert.dist.writer import DistWriter
from slime_convert.hf import HfReader
from slime_convert.hf.checkpoint import Checkpoint
from slime_convert.parameters import ParameterTable
from slime_convert.rules import Parameter
from slime_convert.streaming.prefetch import prefetch
from slime_convert.streaming.progress import Progress, quiet
from slime_convert.target.disk import check_room
from slime_convert.target.out_lock import INSIDE, sole_writer

TRAINABLE = ("BF16", "F16", "F32")
"""Types of tensors that can be trained."""


def hf_to_dist(
    source: Path, out: Path, layout: Layout | None = None, *, progress: Progress = quiet
) -> Path:
    """Write the Hugging Face checkpoint ``source`` as a Megatron checkpoint below ``out``.

    ``out`` is then a directory for --load and --ref-load. Returns the directory of the files.

    Raises:
        CheckpointError: anything is wrong with the tensors, or there is no room for them; then
            ``out`` holds no checkpoint.
    """
    model = Model.of(source)
    with HfReader(source, check_finite=True) as reader:
        return write_dist(reader, model, out, layout or Layout(), progress=progress)


def write_dist(
    reader: Checkpoint, model: Model, out: Path, layout: Layout, *, progress: Progress = quiet
) -> Path:
    """Do the same with tensors that are open already."""
    reader.check(model.table)
    reader.check_bytes()
    _check_types(reader, model)
    _check_layout(model, layout)
    with _errors_of(out):
        _check_target(out)
        with sole_writer(out, out / INSIDE):
            clean(out)  # of a run that was killed while it replaced what was there
            check_room(out, size_of(reader, model.table))
            with staged(out, RELEASE) as directory, DistWriter(directory) as writer:
                _write_tensors(writer, reader, model, layout, progress)
                writer.finish(record.common(model.family, model.arguments, layout))
    return out / RELEASE


def size_of(reader: Checkpoint, table: ParameterTable) -> int:
    """Return the bytes of all tensors that the model needs."""
    return sum(map(reader.nbytes, table.hf_tensors))


def _check_types(reader: Checkpoint, model: Model) -> None:
    problems = [
        f"{name} is {reader.dtype(name)}: only {', '.join(TRAINABLE)} can be trained"
        for name in model.table.hf_tensors
        if reader.dtype(name) not in TRAINABLE
    ]
    problems += _mixed_types(reader, model)
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"the types of tensors in {reader.directory} do not fit: "
            f"{'; '.join(problems[:5])}{more}"
        )


def _mixed_types(reader: Checkpoint, model: Model) -> list[str]:
    """Tensors of several types that Megatron keeps in one: of all layers, or gate and up."""
    first_of: dict[str, dict[str, str]] = {}
    for parameter in model.table.exported:
        found = first_of.setdefault(model.place(parameter).key, {})
        for tensor in parameter.hf:
            found.setdefault(reader.dtype(tensor.name), tensor.name)
    return [
        f"{' and '.join(f'{name} is {dtype}' for dtype, name in found.items())}: "
        f"Megatron keeps them in `{key}`, of one type"
        for key, found in first_of.items()
        if len(found) > 1
    ]


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
    hidden = {f".{RELEASE}.partial", f".{RELEASE}.replaced", f".{TRACKER}.new", INSIDE}
    ours = {RELEASE, TRACKER, *hidden}
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file: choose another directory")
    others = (
        sorted(path.name for path in out.iterdir() if path.name not in ours) if out.exists() else []
    )
    if others:
        raise CheckpointError(
            f"{out} holds {others[0]}, which no conversion wrote: choose another directory"
        )


@contextmanager
def _errors_of(out: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a parameter that were read together, and the chunks that they are written as."""

    parameter: Parameter
    place: Place
    chunks: list[Chunk]
    values: Tensor


def _read_tensors(reader: Checkpoint, model: Model, layout: Layout) -> Iterator[_Rows]:
    for parameter in model.table.exported:
        where = model.place(parameter)
        itemsize = reader.torch_dtype(parameter.hf[0].name).itemsize
        for chunks in cut(parameter, layout, itemsize):
            values = read(reader, parameter, chunks[0].begin, chunks[0].end)
            yield _Rows(parameter, where, chunks, values)


def _write_tensors(
    writer: DistWriter, reader: Checkpoint, model: Model, layout: Layout, progress: Progress
) -> None:
    with_state: set[str] = set()
    tensors = _read_tensors(reader, model, layout)
    with prefetch(tensors, size=lambda rows: rows.values.nbytes) as ready:
        for rows in ready:
            where = rows.place
            first_rank = layout.tensor * _stage(rows, model, layout)
            if where.has_state and where.state_key not in with_state:
                with_state.add(where.state_key)
                writer.add_object(where.state_key, None, rank=first_rank)
            for chunk in rows.chunks:
                _write_chunk(writer, rows, chunk, layout, first_rank)
            progress(rows.values.nbytes)


def _write_chunk(
    writer: DistWriter, rows: _Rows, chunk: Chunk, layout: Layout, first_rank: int
) -> None:
    where, values = rows.place, rows.values
    if chunk.columns is not None:
        values = values[:, slice(*chunk.columns)].contiguous()
    writer.add(
        where.key,
        values.view(*[1] * len(where.dims), *values.shape),
        offset=(*where.index, *chunk.offset(rows.parameter)),
        shape=(*where.dims, *layout.stored_shape(rows.parameter)),
        rank=first_rank + chunk.rank,
    )


def _stage(rows: _Rows, model: Model, layout: Layout) -> int:
    """The pipeline stage whose files they go to."""
    if rows.place.layer is not None:
        return rows.place.layer * layout.pipeline // model.arguments["num_layers"]
    return 0 if rows.parameter.name.startswith("embedding.") else layout.pipeline - 1
