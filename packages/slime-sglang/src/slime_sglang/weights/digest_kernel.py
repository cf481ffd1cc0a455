"""``slime_core.digest`` of many tensors on a GPU at once: one kernel reads all their bytes.

Each program adds up some blocks of one tensor, so that a key is read once for all of them,
scrambles each sum with the block's number, and adds them to the tensor's; integer sums are exact in
any order, so the digits are those of a CPU. What it has read it can write down as well: a copy that
is digested takes no longer than a copy.
"""

# Triton reads the kernels' annotations itself, and knows none of Python's.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportGeneralTypeIssues=false

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Int, UInt8
from slime_core.digest import BLOCK, PAIR_BYTES, finished, keys, words_of
from slime_core.transfer import sent
from torch import Tensor

from slime_sglang.weights.fetch import fetched

_ROWS = tl.constexpr(8)
"""Blocks of a program."""
_STEP = tl.constexpr(256)
"""Pairs of words that are read at once of each of them."""
_PAIRS = tl.constexpr(BLOCK // 2)
"""Of a block."""


@triton.jit
def _mixed(x):
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _add_tensors(table, count, keys, copies: tl.constexpr):
    """``table``: what is known of each of ``count`` tensors, then each program's tensor.

    Known are, each for all tensors: address, number of pairs, first program, where the copy goes,
    and two sums, which begin at 0.
    """
    program = tl.program_id(0)
    owner = tl.load(table + 6 * count + program)
    size = tl.load(table + count + owner)
    begin = (program - tl.load(table + 2 * count + owner)) * _ROWS
    places = begin + tl.arange(0, _ROWS)
    starts = places * _PAIRS
    where = starts[:, None] + tl.arange(0, _STEP)[None, :]
    source = tl.load(table + owner).to(tl.pointer_type(tl.int64)) + where
    target = tl.load(table + 3 * count + owner).to(tl.pointer_type(tl.int64)) + where
    left = size - where
    if (begin + _ROWS) * _PAIRS <= size:
        first, second = _block_sums(source, target, left, keys, copies, True)
    else:
        first, second = _block_sums(source, target, left, keys, copies, False)
    salts = (places + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    sums = table + 4 * count + 2 * owner
    _add(sums, first + salts, starts < size)
    _add(sums + 1, second + salts, starts < size)


@triton.jit
def _block_sums(source, target, left, keys, copies: tl.constexpr, whole: tl.constexpr):
    """Both sums of every block, of what is ``left`` of it; if it is ``whole``, nobody looks."""
    first = tl.zeros((_ROWS, _STEP), tl.uint64)
    second = tl.zeros((_ROWS, _STEP), tl.uint64)
    columns = keys + tl.arange(0, _STEP)
    for at in range(0, _PAIRS, _STEP):
        there = None if whole else at < left
        words = tl.load(source + at, mask=there)
        if copies:
            tl.store(target + at, words, mask=there)
        products = _products(words, tl.load(columns + at))
        others = _products(words, tl.load(columns + _PAIRS + at))
        first += products if whole else tl.where(there, products, 0)
        second += others if whole else tl.where(there, others, 0)
    return tl.sum(first, 1), tl.sum(second, 1)


@triton.jit
def _products(words, keys):
    """Each pair of words, after its keys are added, multiplied."""
    low = words.to(tl.uint32) + keys.to(tl.uint32)[None, :]
    high = (words >> 32).to(tl.uint32) + (keys >> 32).to(tl.uint32)[None, :]
    return low.to(tl.uint64) * high.to(tl.uint64)


@triton.jit
def _add(where, totals, there):
    """Scrambled block sums, those that are ``there``."""
    mixed = tl.where(there, _mixed(totals).to(tl.int64), 0)
    tl.atomic_add(where, tl.sum(mixed, 0))


def start(
    tensors: Sequence[Tensor], copy_to: UInt8[Tensor, " bytes"] | None = None
) -> Callable[[], list[str]]:
    """Begin with tensors on one GPU; what comes back waits for their digests, for nothing later.

    ``copy_to``: where the tensors, which ``are_plain`` then, go one behind the other.
    """
    device = tensors[0].device
    held, addresses, num_bytes = _words(tensors)
    count = len(held)
    sizes = -(-num_bytes // PAIR_BYTES)
    blocks = -(-num_bytes // (4 * BLOCK))
    programs = -(-blocks // _ROWS.value)
    table = np.zeros(6 * count + programs.sum(), np.int64)
    known = table[: 4 * count].reshape(4, count)
    known[:3] = addresses, sizes, np.cumsum(programs) - programs
    if copy_to is not None:
        known[3] = copy_to.data_ptr() + np.cumsum(num_bytes) - num_bytes
    table[6 * count :] = np.repeat(np.arange(count), programs)
    there = sent(torch.from_numpy(table), device)
    if programs.any():
        launch: Any = _add_tensors[(int(programs.sum()),)]
        pairs = keys(device).view(torch.int64)
        with torch.cuda.device_of(there):
            launch(there, count, pairs, copy_to is not None, num_warps=8)
    sums = fetched(there[4 * count : 6 * count])
    return lambda: finished(sums().view(-1, 2).numpy(), num_bytes, blocks)


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether the memory of all can be read, and copied, in pairs of words where it is."""
    return all(_is_plain(tensor, tensor.data_ptr(), tensor.nbytes) for tensor in tensors)


def _is_plain(tensor: Tensor, address: int, num_bytes: int) -> bool:
    return (address | num_bytes) % PAIR_BYTES == 0 and tensor.is_contiguous()


def _words(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[int], Int[np.ndarray, "..."]]:
    """What holds the pairs of each, where they are, and how many bytes belong to the tensor."""
    held = list(tensors)
    addresses = [tensor.data_ptr() for tensor in tensors]
    num_bytes = [tensor.nbytes for tensor in tensors]
    for at, tensor in enumerate(tensors):
        if not _is_plain(tensor, addresses[at], num_bytes[at]):
            held[at] = words_of(tensor)
            addresses[at] = held[at].data_ptr()
    return held, addresses, np.array(num_bytes, np.int64)
