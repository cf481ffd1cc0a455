"""Cutting parameters into the chunks of a checkpoint: by tensor-parallel rank, then by size.

Megatron reads chunks cut in any way. Cut like this, a rank of the layout that was asked for reads
its own chunks and no others, and no chunk is larger than what is kept in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert.hf.checkpoint import Checkpoint
from slime_convert.rules import Parameter, Split, Transform
from slime_convert.shards import padded_vocab_size
from slime_convert.transforms import to_megatron

CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """For how many ranks a checkpoint is cut; it can be loaded by any other number."""

    tensor: int = 1
    pipeline: int = 1
    vocab_divisible_by: int = 128

    def stored_shape(self, parameter: Parameter) -> tuple[int, ...]:
        """Return the shape of the parameter with the rows that pad the vocabulary."""
        rows, *rest = parameter.shape
        if parameter.split is Split.VOCAB:
            rows = padded_vocab_size(rows, self.tensor, divisible_by=self.vocab_divisible_by)
        return (rows, *rest)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a parameter: consecutive rows, all columns or those of one rank."""

    rank: int
    """The tensor-parallel rank it is for."""
    begin: int
    end: int
    columns: tuple[int, int] | None = None

    def offset(self, parameter: Parameter) -> tuple[int, ...]:
        """Return where in the parameter the chunk begins."""
        rest = [0] * (len(parameter.shape) - 1)
        if self.columns is not None:
            rest[0] = self.columns[0]
        return (self.begin, *rest)

    def shape(self, parameter: Parameter) -> tuple[int, ...]:
        """Return the sizes of the chunk."""
        rest = list(parameter.shape[1:])
        if self.columns is not None:
            rest[0] = self.columns[1] - self.columns[0]
        return (self.end - self.begin, *rest)


def cut(parameter: Parameter, layout: Layout, itemsize: int) -> Iterator[list[Chunk]]:
    """Yield the chunks, those with the same rows together, from the first row to the last."""
    rows = layout.stored_shape(parameter)[0]
    row_bytes = max(1, itemsize * _numel(parameter.shape[1:]))
    unit = row_unit(parameter)
    step = max(unit, CHUNK_BYTES // row_bytes // unit * unit)
    columns = _columns(parameter, layout.tensor)
    for rank, begin, end in _row_ranges(parameter, rows, layout.tensor):
        for first in range(begin, end, step):
            last = min(first + step, end)
            if columns:
                yield [Chunk(rank, first, last, part) for rank, part in enumerate(columns)]
            else:
                yield [Chunk(rank, first, last)]


def row_unit(parameter: Parameter) -> int:
    """Return the number of rows that are made of whole rows of the Hugging Face tensors.

    One where they follow each other, a query group where they alternate.
    """
    if parameter.transform is Transform.QKV:
        return parameter.shape[0] // parameter.num_query_groups
    return 1


def read(reader: Checkpoint, parameter: Parameter, begin: int, end: int) -> Tensor:
    """Return rows of the Megatron tensor, zeros where the vocabulary is padded.

    ``begin`` and ``end`` are multiples of ``row_unit``.
    """
    tensor = _read(reader, parameter, begin, min(end, parameter.shape[0]))
    if missing := (end - begin) - len(tensor):
        tensor = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
    return tensor


def _read(reader: Checkpoint, parameter: Parameter, begin: int, end: int) -> Tensor:
    if begin >= end:
        return reader.rows(parameter.hf[0].name, 0, 0)
    if parameter.transform is Transform.QKV:
        unit = row_unit(parameter)
        return _groups(reader, parameter, begin // unit, end // unit)
    return _stacked(reader, parameter, begin, end)


def _stacked(reader: Checkpoint, parameter: Parameter, begin: int, end: int) -> Tensor:
    parts: list[Tensor] = []
    offset = 0
    for tensor in parameter.hf:
        first, last = max(begin - offset, 0), min(end - offset, tensor.shape[0])
        if first < last:
            parts.append(reader.rows(tensor.name, first, last))
        offset += tensor.shape[0]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _groups(reader: Checkpoint, parameter: Parameter, begin: int, end: int) -> Tensor:
    """The query groups from ``begin`` to ``end``: a parameter of fewer groups."""
    groups = parameter.num_query_groups
    units = [tensor.shape[0] // groups for tensor in parameter.hf]
    fewer = replace(
        parameter,
        num_query_groups=end - begin,
        hf=tuple(
            replace(tensor, shape=((end - begin) * unit, *tensor.shape[1:]))
            for tensor, unit in zip(parameter.hf, units, strict=True)
        ),
    )
    parts = [
        reader.rows(tensor.name, begin * unit, end * unit)
        for tensor, unit in zip(parameter.hf, units, strict=True)
    ]
    return to_megatron(fewer, parts)


def _row_ranges(parameter: Parameter, rows: int, tp: int) -> Iterator[tuple[int, int, int]]:
    """Yield (rank, begin, end) for the rows that each rank holds without a gap.

    All rows are for rank 0 where rows are not what is split, and where a rank would begin within a
    row unit.
    """
    halves = 2 if parameter.split is Split.GATED else 1
    if _is_whole(parameter) or parameter.split is Split.ROW:
        tp = 1
    _check_divides(parameter, rows // halves, tp, "rows")
    size = rows // halves // tp
    if size % row_unit(parameter):  # fewer query groups than ranks
        tp, size = 1, rows // halves
    for half in range(halves):
        for rank in range(tp):
            begin = (half * tp + rank) * size
            yield rank, begin, begin + size


def _columns(parameter: Parameter, tp: int) -> list[tuple[int, int]]:
    """Return from where to where the columns of each rank are; nothing if columns are not split."""
    if parameter.split is not Split.ROW or _is_whole(parameter) or tp == 1:
        return []
    columns = parameter.shape[1]
    _check_divides(parameter, columns, tp, "columns")
    size = columns // tp
    return [(rank * size, (rank + 1) * size) for rank in range(tp)]


def _is_whole(parameter: Parameter) -> bool:
    """Whether it is not cut: ranks have experts of their own more often than parts of each."""
    return parameter.expert or parameter.split is Split.REPLICATED


def _check_divides(parameter: Parameter, size: int, tp: int, what: str) -> None:
    if size % tp:
        raise CheckpointError(
            f"`{parameter.name}`: {size} {what} do not split evenly over {tp} tensor-parallel "
            f"ranks: --tensor-model-parallel-size must divide {size}"
        )


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
