"""``slime_core.digest`` of many tensors on a GPU at once: one kernel reads all their bytes.

Each program adds up some blocks of one tensor, so that a multiplier is read once for all of them,
scrambles each sum with the block's number, and adds them to the tensor's; integer sums are exact in
any order, so the digits are those of a CPU. What it has read it can write down as well: a copy that
is digested takes no longer than a copy.
"""

# Triton reads the kernels' annotations itself, and knows none of Python's.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import UInt8
from slime_core.digest import BLOCK, finished, keys, words_of
from slime_core.transfer import sent
from torch import Tensor

_ROWS = tl.constexpr(8)
"""Blocks of a program."""
_STEP = 512
_WORD = 4


@triton.jit
def _mixed(x):
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _add_blocks(table, count, keys, copies: tl.constexpr, block: tl.constexpr, step: tl.constexpr):
    """``table``: what is known of each of ``count`` tensors, then each program's tensor.

    Known are, each for all tensors: address, number of words, first program, where the copy goes,
    and two sums, which begin at 0.
    """
    program = tl.program_id(0)
    owner = tl.load(table + 6 * count + program)
    words = tl.load(table + owner).to(tl.pointer_type(tl.int32))
    size = tl.load(table + count + owner)
    places = program - tl.load(table + 2 * count + owner)
    target = tl.load(table + 3 * count + owner).to(tl.pointer_type(tl.int32))
    places = places * _ROWS + tl.arange(0, _ROWS)
    starts = places.to(tl.int64) * block
    first = tl.zeros((_ROWS, step), tl.int64)
    second = tl.zeros((_ROWS, step), tl.int64)
    for at in range(0, block, step):
        column = at + tl.arange(0, step)
        where = starts[:, None] + column[None, :]
        found = tl.load(words + where, mask=where < size, other=0)
        if copies:
            tl.store(target + where, found, mask=where < size)
        word = found.to(tl.int64)
        first += word * tl.load(keys + column)[None, :]
        second += word * tl.load(keys + block + column)[None, :]
    salts = (places + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    there = starts < size
    sums = table + 4 * count + 2 * owner
    _add(sums, tl.sum(first, 1).to(tl.uint64) + salts, there)
    _add(sums + 1, tl.sum(second, 1).to(tl.uint64) + salts, there)


@triton.jit
def _add(where, totals, there):
    """Scrambled block sums, those that are ``there``."""
    mixed = tl.where(there, _mixed(totals).to(tl.int64), 0)
    tl.atomic_add(where, tl.sum(mixed, 0))


def tensor_digests(tensors: Sequence[Tensor]) -> list[str]:
    """As ``slime_core.digest.tensor_digests``, of tensors on one GPU."""
    return start(tensors)()


def start(
    tensors: Sequence[Tensor], copy_to: UInt8[Tensor, " bytes"] | None = None
) -> Callable[[], list[str]]:
    """Begin; what comes back waits for the digests, and for nothing that is begun later.

    ``copy_to``: where the tensors, which ``is_plain`` then, go one behind the other.
    """
    device = tensors[0].device
    held = [tensor if is_plain(tensor) else words_of(tensor) for tensor in tensors]
    count = len(held)
    num_bytes = np.array([tensor.nbytes for tensor in tensors], np.int64)
    sizes = -(-num_bytes // _WORD)
    blocks = -(-sizes // BLOCK)
    programs = -(-blocks // _ROWS.value)
    table = np.zeros(6 * count + programs.sum(), np.int64)
    known = table[: 4 * count].reshape(4, count)
    known[0] = [each.data_ptr() for each in held]
    known[1] = sizes
    known[2] = np.cumsum(programs) - programs
    if copy_to is not None:
        known[3] = copy_to.data_ptr() + np.cumsum(num_bytes) - num_bytes
    table[6 * count :] = np.repeat(np.arange(count), programs)
    there = sent(torch.from_numpy(table), device)
    if programs.any():
        launch: Any = _add_blocks[(int(programs.sum()),)]
        with torch.cuda.device_of(there):
            launch(there, count, keys(device), copy_to is not None, BLOCK, _STEP, num_warps=8)
    sums = there[4 * count : 6 * count].to("cpu", non_blocking=True)
    arrived = _mark(device)

    def finish() -> list[str]:
        arrived()
        return finished(sums.view(-1, 2).numpy(), num_bytes, blocks)

    return finish


def _mark(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done what it was given so far."""
    if device.type != "cuda":
        return lambda: None
    with torch.cuda.device(device):
        return torch.cuda.current_stream().record_event().synchronize


def is_plain(tensor: Tensor) -> bool:
    """Whether its memory can be read, and copied, as words where it is."""
    aligned = tensor.nbytes % _WORD == 0 and tensor.data_ptr() % _WORD == 0
    return aligned and tensor.is_contiguous()
