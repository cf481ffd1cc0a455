"""Tensors on their way from one checkpoint into another: the large ones some rows at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from slime_convert.hf.checkpoint import Checkpoint
from slime_convert.streaming.progress import Progress

BLOCK_BYTES = 64 << 20
"""How much of a tensor is in memory at a time."""


@dataclass(frozen=True, slots=True)
class TensorStream:
    """A tensor too large to be held in memory: its rows, in order, some at a time."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[Tensor]]

    @property
    def nbytes(self) -> int:
        """Size of the whole tensor."""
        return prod(self.shape) * self.dtype.itemsize


type NamedTensor = tuple[str, Tensor | TensorStream]


def streamed(reader: Checkpoint, name: str, *, row_unit: int = 1) -> TensorStream:
    """Return a tensor of a checkpoint, unread.

    ``row_unit``: every block but the last is a multiple of so many rows.
    """
    shape, dtype = reader.shape(name), reader.torch_dtype(name)
    rows = shape[0] if shape else 1
    row_bytes = max(1, prod(shape[1:]) * dtype.itemsize)
    step = max(1, BLOCK_BYTES // row_bytes // row_unit) * row_unit

    def blocks() -> Iterator[Tensor]:
        for begin in range(0, rows, step):
            yield reader.rows(name, begin, min(begin + step, rows))

    return TensorStream(dtype, shape, blocks)


def reported(tensors: Iterable[NamedTensor], progress: Progress) -> Iterator[NamedTensor]:
    """Yield the tensors; ``progress`` is told of each once whoever takes them is done with it."""
    for name, tensor in tensors:
        yield name, tensor
        progress(tensor.nbytes)
