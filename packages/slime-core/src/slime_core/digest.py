"""A 128-bit fingerprint of a tensor's bytes, equal on every device.

To every 32-bit word the fixed pseudo-random key of its place in a block is added, modulo 2**32;
words are multiplied in pairs, and the products of a block are added modulo 2**64, twice, under
independent keys. Block sums are scrambled with the block's number and added. Integer sums do not
depend on the order of addition, so a CPU and a GPU agree exactly, and the tensor never leaves its
device. What is missing of the last pair is zero.

    sum of ((w[2i] + k[2i]) mod 2**32) * ((w[2i + 1] + k[2i + 1]) mod 2**32)  mod 2**64

Two tensors of one size that differ collide with probability about 2**-64: this is NH of UMAC
(Black, Halevi, Krawczyk, Krovetz and Rogaway, CRYPTO 1999, theorem 4.2) with two keys of 32 bits.
It detects accidents, not adversaries.
"""

import functools
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from slime_core.splitmix import GOLDEN, mix

BLOCK = 1 << 14
PAIR_BYTES = 8
DIGITS = 32
_WORD = 0xFFFFFFFF
_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Words at a time: what stays in a CPU's cache, what keeps a GPU busy."""


def tensor_digest(t: Tensor) -> str:
    """32 hexadecimal digits that depend on every byte of ``t`` and on its place, not its device."""
    return tensor_digests([t])[0]


def tensor_digests(tensors: Iterable[Tensor]) -> list[str]:
    """``tensor_digest`` of each, waiting for the device once."""
    sums = [_fingerprint(t) for t in tensors]
    return _digits(torch.stack(sums).cpu().numpy()) if sums else []


def finished(
    sums: Int[np.ndarray, "tensors 2"],
    num_bytes: Int[np.ndarray, " tensors"],
    blocks: Int[np.ndarray, " tensors"],
) -> list[str]:
    """Digests from the scrambled block sums of each tensor, wherever they were added up."""
    size = num_bytes + (blocks + 1) * GOLDEN
    return _digits(mix(sums + mix(size)[:, None]))


def _digits(rows: Int[np.ndarray, "tensors 2"]) -> list[str]:
    text = rows.astype(">i8").tobytes().hex()
    return [text[at : at + DIGITS] for at in range(0, len(text), DIGITS)]


def _fingerprint(t: Tensor) -> Int[Tensor, " 2"]:
    words = words_of(t)
    key_table = keys(words.device)
    sums = [
        _block_sums(chunk, key_table)
        for chunk in words.split(_CHUNK.get(words.device.type, 1 << 22))
        if chunk.numel()
    ]
    size = torch.full((1, 2), t.numel() * t.element_size(), device=words.device)
    blocks = torch.cat([*sums, size])
    places = torch.arange(1, len(blocks) + 1, device=words.device).unsqueeze(1)
    return mix(mix(blocks + places * GOLDEN).sum(0))


def words_of(t: Tensor) -> Int[Tensor, " words"]:
    """The bytes of ``t`` as pairs of 32-bit integers, the last pair filled up with zeros."""
    flat = t.detach().contiguous().flatten()
    data = flat.view(torch.uint8)
    if missing := -data.numel() % PAIR_BYTES:
        data = torch.cat([data, data.new_zeros(missing)])
    elif data.data_ptr() % PAIR_BYTES:
        data = data.clone()  # a pair is read at once
    return data.view(torch.int32)


def _block_sums(words: Int[Tensor, " words"], keys: Int[Tensor, "2 block"]) -> Tensor:
    whole = words.numel() // BLOCK * BLOCK
    multiply = _products_cpu if words.device.type == "cpu" else _products
    sums = [multiply(words[:whole].view(-1, BLOCK), keys)]
    if whole < words.numel():
        tail = words[whole:].unsqueeze(0)
        sums.append(multiply(tail, keys[:, : tail.shape[1]]))
    return torch.cat(sums)


def _products(
    blocks: Int[Tensor, "blocks words"], keys: Int[Tensor, "2 words"]
) -> Int[Tensor, "blocks 2"]:
    """Of every block, under either key."""
    rows: list[Tensor] = []
    for key in keys:
        first, second = ((blocks + key).long() & _WORD).unflatten(1, (-1, 2)).unbind(2)
        rows.append((first * second).sum(1))
    return torch.stack(rows, dim=1)


def _products_cpu(
    blocks: Int[Tensor, "blocks words"], keys: Int[Tensor, "2 words"]
) -> Int[Tensor, "blocks 2"]:
    """The same with fewer temporaries."""
    words = blocks.numpy()
    pairs = [(words + key).view(np.uint64) for key in keys.numpy()]
    sums = [np.einsum("bi,bi->b", pair & _WORD, pair >> 32) for pair in pairs]
    return torch.from_numpy(np.stack(sums, axis=1).view(np.int64))


@functools.cache
def keys(device: torch.device) -> Int[Tensor, "2 block"]:
    """What is added to the word of each place in a block, for either sum, in 32 bits."""
    places = torch.arange(1, 2 * BLOCK + 1, device=device)
    return (mix(places * GOLDEN) >> 32).int().view(2, BLOCK)
