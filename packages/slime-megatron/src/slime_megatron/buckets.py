"""Which parameters travel together when a sharded model is put together, and how they are packed.

A *run* is a sequence of parameters of one pipeline stage. The part that a tensor-parallel rank
holds of a run is one vector of bytes; with two ranks and parameters a, b::

    rank 0   [ a_0 | b_0 ]         gathered, one row per rank   [[ a_0 | b_0 ],
    rank 1   [ a_1 | b_1 ]                                       [ a_1 | b_1 ]]

Routed experts are divided over expert-parallel ranks besides, which hold like parameters of
different experts: such parameters are one piece, and the rows come in blocks, one per
expert-parallel rank. With experts a .. d on two of those ranks, each cut over two::

    [[ a_0 | b_0 ],   first rank, parts 0 and 1 of its experts a and b
     [ a_1 | b_1 ],
     [ c_0 | d_0 ],   second rank, of c and d
     [ c_1 | d_1 ]]

Every part starts at a multiple of 16 bytes, so that it can be viewed in any dtype where it lies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from slime_convert.rules import Parameter
from slime_convert.shards import unshard
from slime_convert.transforms import to_hf
from torch import Tensor

type Bucket = list[tuple[str, Tensor]]
"""Full tensors by Hugging Face name; views of memory that no other bucket touches."""

_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """One parameter of the whole model, or one of each expert-parallel rank; and their parts."""

    members: tuple[Parameter, ...]
    """Alike, by expert-parallel rank; one where all ranks of a stage hold the same parameter."""
    stage: int
    """Pipeline rank that holds it."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the part on one rank."""
    expert: bool = False
    """Whether the parts are with the expert-parallel ranks instead of the tensor-parallel ones."""

    @property
    def name(self) -> str:
        """That of the first member, by which all ranks call the piece."""
        return self.members[0].name

    @property
    def part_bytes(self) -> int:
        """Bytes of one part, without the gap behind it."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def stride(self) -> int:
        """Bytes from the start of this part to that of the next."""
        return -(-self.part_bytes // _ALIGNMENT) * _ALIGNMENT

    @property
    def full_bytes(self) -> int:
        """Bytes of its Hugging Face tensors."""
        numel = sum(torch.Size(member.shape).numel() for member in self.members)
        return numel * self.dtype.itemsize


def split_runs(pieces: Sequence[Piece], bucket_bytes: int) -> Iterator[list[Piece]]:
    """Yield the longest runs held by the same ranks, of at most ``bucket_bytes``.

    A parameter larger than that is a run of its own; parameters that engines want together (see
    ``Rule.with_next``) count as one.
    """
    run: list[Piece] = []
    size = 0
    for unit in _units(pieces):
        unit_bytes = sum(piece.full_bytes for piece in unit)
        if run and (_place(unit[0]) != _place(run[0]) or size + unit_bytes > bucket_bytes):
            yield run
            run, size = [], 0
        run += unit
        size += unit_bytes
    if run:
        yield run


def _units(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Runs that must not be divided; rules say so only of parameters of one layer."""
    unit: list[Piece] = []
    for piece in pieces:
        unit.append(piece)
        if not piece.members[0].with_next:
            yield unit
            unit = []
    assert not unit, "the last parameter has no next"


def _place(piece: Piece) -> tuple[int, bool]:
    return piece.stage, piece.expert


def row_bytes(run: Sequence[Piece]) -> int:
    """Length of the byte vector that one tensor-parallel rank contributes."""
    return sum(piece.stride for piece in run)


def pack(run: Sequence[Piece], parts: Sequence[Tensor]) -> Tensor:
    """Return the byte vector of this rank's ``parts``; a copy."""
    row = torch.zeros(row_bytes(run), dtype=torch.uint8, device=parts[0].device)
    start = 0
    for piece, part in zip(run, parts, strict=True):
        row[start : start + piece.part_bytes].view(piece.dtype).view(piece.shape).copy_(part)
        start += piece.stride
    return row


def unpack(run: Sequence[Piece], rows: Tensor) -> Bucket:
    """Return the Hugging Face tensors of a run from the byte vectors of all ranks."""
    bucket: Bucket = []
    start = 0
    for piece in run:
        columns = rows[:, start : start + piece.part_bytes]
        for member, block in zip(piece.members, columns.chunk(len(piece.members)), strict=True):
            parts = [row.view(piece.dtype).view(piece.shape) for row in block]
            bucket += to_hf(member, unshard(member, parts)).items()
        start += piece.stride
    return bucket


def unpack_within(run: Sequence[Piece], rows: Tensor, bucket_bytes: int) -> Iterator[Bucket]:
    """Yield what ``unpack`` returns in buckets of at most ``bucket_bytes``, or one parameter each.

    A run is within the limit unless it is one piece; one that has experts of many ranks is
    handed on some experts at a time.
    """
    piece = run[0]
    alike = len(piece.members)
    if len(run) > 1 or alike == 1:
        yield unpack(run, rows)
        return
    count = max(1, bucket_bytes * alike // piece.full_bytes)
    height = len(rows) // alike
    for first in range(0, alike, count):
        some = replace(piece, members=piece.members[first : first + count])
        yield unpack([some], rows[first * height : (first + count) * height])
