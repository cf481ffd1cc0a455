"""One bucket of named tensors end to end in a single byte tensor, as SGLang reads it.

SGLang's "flattened_bucket" format is a uint8 tensor plus, per tensor, name, shape, dtype and byte
range. Tensors are ordered by falling item size, so that each starts at a multiple of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

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
    """Copy ``tensors``, all on one device, into one bucket together with their digests.

    A GPU copies while the host writes the digests down.
    """
    finish = begin_digests(tensors)
    room = tensors[0][1].new_empty(room_for(name for name, _ in tensors), dtype=torch.uint8)
    bucket = end_to_end([*tensors, (DIGESTS, room)])
    digests = finish()
    bucket.flat[-len(room) :] = encode(digests)
    return replace(bucket, receipt=receipt(digests))


def end_to_end(tensors: NamedTensors) -> Bucket:
    """``tensors`` alone in one bucket, for which no engine owes a receipt."""
    ordered = sorted(tensors, key=lambda item: -item[1].element_size())
    return Bucket(
        flat=torch.cat([_bytes(tensor) for _, tensor in ordered]),
        names=tuple(name for name, _ in ordered),
        dtypes=tuple(tensor.dtype for _, tensor in ordered),
        shapes=tuple(tensor.shape for _, tensor in ordered),
        receipt="",
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def unpack(flat: Tensor, metadata: Sequence[SimpleNamespace]) -> list[tuple[str, Tensor]]:
    """The named tensors of a bucket, as views of ``flat``."""
    return [
        (row.name, flat[row.start_idx : row.end_idx].view(row.dtype).reshape(row.shape))
        for row in metadata
    ]
