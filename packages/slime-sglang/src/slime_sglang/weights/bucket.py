"""One bucket of named tensors end to end in a single byte tensor, as SGLang reads it.

SGLang's "flattened_bucket" format is a uint8 tensor plus, per tensor, name, shape, dtype and byte
range. Tensors are ordered by falling item size, so that each starts at a multiple of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor

from slime_sglang.weights.digests import (
    DIGESTS,
    NamedTensors,
    begin_digests,
    encode,
    receipt,
    room_for,
)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Made by ``pack``; ``flat`` has to live until every engine has answered."""

    flat: Tensor
    names: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[torch.Size, ...]
    receipt: str
    """What an engine that verified it answers."""

    @classmethod
    def of(cls, flat: Tensor, tensors: NamedTensors, receipt: str) -> Self:
        """``tensors`` lie in ``flat`` one behind the other."""
        return cls(
            flat=flat,
            names=tuple(name for name, _ in tensors),
            dtypes=tuple(tensor.dtype for _, tensor in tensors),
            shapes=tuple(tensor.shape for _, tensor in tensors),
            receipt=receipt,
        )

    def metadata(self) -> list[SimpleNamespace]:
        """SGLang's FlattenedTensorMetadata by attribute names, without importing SGLang."""
        rows: list[SimpleNamespace] = []
        start = 0
        for name, dtype, shape in zip(self.names, self.dtypes, self.shapes, strict=True):
            size = shape.numel() * dtype.itemsize
            rows.append(
                SimpleNamespace(
                    name=name,
                    shape=shape,
                    dtype=dtype,
                    start_idx=start,
                    end_idx=start + size,
                    numel=size,
                )
            )
            start += size
        return rows

    def description(self) -> dict[str, Any]:
        """Names, dtypes and shapes as a request for a broadcast bucket has them."""
        return {
            "names": list(self.names),
            "dtypes": [str(dtype).removeprefix("torch.") for dtype in self.dtypes],
            "shapes": [list(shape) for shape in self.shapes],
            "load_format": "flattened_bucket",
        }


def pack(tensors: NamedTensors) -> Bucket:
    """Copy ``tensors``, all on one device, into one bucket together with their digests."""
    ordered = sorted(tensors, key=lambda item: -item[1].element_size())
    size = sum(tensor.nbytes for _, tensor in ordered)
    room = room_for(name for name, _ in ordered)
    flat = ordered[0][1].new_empty(size + room, dtype=torch.uint8)
    digests = begin_digests(ordered, flat[:size])()
    flat[size:] = encode(digests)
    return Bucket.of(flat, [*ordered, (DIGESTS, flat[size:])], receipt(digests))


def unpack(flat: Tensor, metadata: Sequence[SimpleNamespace]) -> list[tuple[str, Tensor]]:
    """The named tensors of a bucket, as views of ``flat``."""
    return [
        (row.name, flat[row.start_idx : row.end_idx].view(row.dtype).reshape(row.shape))
        for row in metadata
    ]
