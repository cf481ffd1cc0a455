"""Which parameters travel together when a sharded model is put together, and how they are packed.

A *run* is a sequence of parameters of one pipeline stage. The part that a tensor-parallel rank
holds of a run is one vector of bytes; with two ranks and parameters a, b::

    rank 0   [ a_0 | b_0 ]         gathered, one row per rank   [[ a_0 | b_0 ],
    rank 1   [ a_1 | b_1 ]                                       [ a_1 | b_1 ]]

Every part starts at a multiple of 16 bytes, so that it can be viewed in any dtype where it lies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    """One parameter of the whole model, and where its parts are."""

    parameter: Parameter
    stage: int
    """Pipeline rank that holds it."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Of the part on one tensor-parallel rank."""

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
        return torch.Size(self.parameter.shape).numel() * self.dtype.itemsize


def split_runs(pieces: Sequence[Piece], bucket_bytes: int) -> Iterator[list[Piece]]:
    """Yield the longest runs of one stage that hold at most ``bucket_bytes``.

    A parameter larger than that is a run of its own.
    """
    run: list[Piece] = []
    size = 0
    for piece in pieces:
        if run and (piece.stage != run[0].stage or size + piece.full_bytes > bucket_bytes):
            yield run
            run, size = [], 0
        run.append(piece)
        size += piece.full_bytes
    if run:
        yield run


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
        parts = [row.view(piece.dtype).view(piece.shape) for row in columns]
        bucket += to_hf(piece.parameter, unshard(piece.parameter, parts)).items()
        start += piece.stride
    return bucket
