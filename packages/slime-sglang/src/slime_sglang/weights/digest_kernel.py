"""``slime_core.digest`` of many tensors on a GPU at once: one kernel reads all their bytes.

Each program adds up some blocks of one tensor, so that a multiplier is read once for all of them,
scrambles each sum with the block's number, and adds them to the tensor's; integer sums are exact in
any order, so the digits are those of a CPU.
"""

# Triton reads the kernels' annotations itself, and knows none of Python's.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
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
def _add_blocks(table, count, owners, keys, sums, block: tl.constexpr, step: tl.constexpr):
    """``table``: address, number of words and first program of each of ``count`` tensors."""
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    size = tl.load(table + count + owner)
    words = tl.load(table + owner).to(tl.pointer_type(tl.int32))
    places = (program - tl.load(table + 2 * count + owner)) * _ROWS + tl.arange(0, _ROWS)
    starts = places.to(tl.int64) * block
    first = tl.zeros((_ROWS, step), tl.int64)
    second = tl.zeros((_ROWS, step), tl.int64)
    for at in range(0, block, step):
        column = at + tl.arange(0, step)
        where = starts[:, None] + column[None, :]
        word = tl.load(words + where, mask=where < size, other=0).to(tl.int64)
        first += word * tl.load(keys + column)[None, :]
        second += word * tl.load(keys + block + column)[None, :]
    salts = (places + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    there = starts < size
    _add(sums + 2 * owner, tl.sum(first, 1).to(tl.uint64) + salts, there)
    _add(sums + 2 * owner + 1, tl.sum(second, 1).to(tl.uint64) + salts, there)


@triton.jit
def _add(where, totals, there):
    """Scrambled block sums, those that are ``there``."""
    mixed = tl.where(there, _mixed(totals).to(tl.int64), 0)
    tl.atomic_add(where, tl.sum(mixed, 0))


def tensor_digests(tensors: Sequence[Tensor]) -> list[str]:
    """As ``slime_core.digest.tensor_digests``, of tensors on one GPU."""
    return start(tensors)()


def start(tensors: Sequence[Tensor]) -> Callable[[], list[str]]:
    """Begin; what comes back waits for the digests, and for nothing that is begun later."""
    device = tensors[0].device
    held = [tensor if _is_plain(tensor) else words_of(tensor) for tensor in tensors]
    num_bytes = np.array([tensor.nbytes for tensor in tensors], np.int64)
    sizes = -(-num_bytes // _WORD)
    blocks = -(-sizes // BLOCK)
    programs = -(-blocks // _ROWS.value)
    firsts = np.cumsum(programs) - programs
    table = np.stack([[each.data_ptr() for each in held], sizes, firsts])
    owners = np.repeat(np.arange(len(held), dtype=np.int32), programs)
    sums = torch.zeros(len(held), 2, dtype=torch.int64, device=device)
    arguments = (
        sent(torch.from_numpy(table), device),
        len(held),
        sent(torch.from_numpy(owners), device),
        keys(device),
        sums,
    )
    if len(owners):
        launch: Any = _add_blocks[(len(owners),)]
        with torch.cuda.device_of(sums):
            launch(*arguments, BLOCK, _STEP, num_warps=8)
    here, arrived = sums.to("cpu", non_blocking=True), _mark(device)

    def finish() -> list[str]:
        arrived()
        return finished(here, torch.from_numpy(num_bytes), torch.from_numpy(blocks))

    return finish


def _mark(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done what it was given so far."""
    if device.type != "cuda":
        return lambda: None
    with torch.cuda.device(device):
        return torch.cuda.current_stream().record_event().synchronize


def _is_plain(tensor: Tensor) -> bool:
    """Whether its memory can be read as words where it is."""
    aligned = tensor.nbytes % _WORD == 0 and tensor.data_ptr() % _WORD == 0
    return aligned and tensor.is_contiguous()
