"""What changed in a tensor between two versions, as compressed bytes.

xor: ``old ^ new``, zero where nothing changed; applied twice, or to another base, it is wrong.
overwrite: gaps between the places of changed elements, then their new values; may be repeated.
Either is compressed by zstd, and the tensor that comes out has a checksum.
"""

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from slime_core.errors import WeightSyncError
from torch import Tensor

Encoding = Literal["xor", "overwrite"]
Checksum = Literal["xxh3-128", "blake3", "adler32"]
Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]

_LEVEL = 1


def bytes_of(tensor: Tensor) -> Bytes:
    """The bytes of a tensor on the host; a view where it is there already."""
    flat = tensor.detach().contiguous().cpu().flatten()
    return flat.view(torch.uint8).numpy()


def num_changed(old: Bytes, new: Bytes, itemsize: int) -> int:
    """Elements of ``itemsize`` bytes that differ."""
    return int(np.count_nonzero(_elements(old, itemsize) != _elements(new, itemsize)))


def encode(old: Bytes, new: Bytes, itemsize: int, encoding: Encoding) -> bytes:
    """What turns ``old`` into ``new``."""
    import zstandard

    raw: Any = np.bitwise_xor(old, new)
    if encoding == "overwrite":
        before, after = _elements(old, itemsize), _elements(new, itemsize)
        places = np.flatnonzero(before != after)
        gaps = np.diff(places, prepend=0).astype(_place_type(len(after)))
        raw = gaps.tobytes() + after[places].tobytes()
    return zstandard.ZstdCompressor(level=_LEVEL).compress(raw)


def apply(old: Bytes, difference: bytes, itemsize: int, encoding: Encoding) -> Bytes:
    """The new bytes; ``WeightSyncError`` when ``difference`` is damaged."""
    import zstandard

    try:
        raw = zstandard.ZstdDecompressor().decompress(difference)
        if encoding == "xor":
            return np.bitwise_xor(old, np.frombuffer(raw, np.uint8))
        new = _elements(old.copy(), itemsize)
        place = np.dtype(_place_type(len(new)))
        count = len(raw) // (place.itemsize + itemsize)
        places = np.cumsum(np.frombuffer(raw, place, count).astype(np.int64))
        new[places] = np.frombuffer(raw, new.dtype, offset=count * place.itemsize)
        return new.view(np.uint8)
    except (zstandard.ZstdError, ValueError, IndexError) as error:
        raise WeightSyncError(f"a difference of weights is damaged: {error}") from error


def checksum(data: Bytes, kind: Checksum) -> str:
    """Hexadecimal digits."""
    return _CHECKSUMS[kind](data)


def _elements(data: Bytes, itemsize: int) -> Any:
    return data.view(f"<u{itemsize}")


def _place_type(num_elements: int) -> str:
    return "<u4" if num_elements < 1 << 32 else "<u8"


def _xxh3(data: Bytes) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def _blake3(data: Bytes) -> str:
    import blake3

    return blake3.blake3(memoryview(data)).hexdigest()


def _adler32(data: Bytes) -> str:
    return f"{zlib.adler32(data):08x}"


_CHECKSUMS: Mapping[str, Callable[[Bytes], str]] = MappingProxyType(
    {"xxh3-128": _xxh3, "blake3": _blake3, "adler32": _adler32}
)
