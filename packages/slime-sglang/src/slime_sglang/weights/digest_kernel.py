"""``slime_core.digest`` of many tensors on a GPU at once: one kernel reads all their bytes.

Each program adds up one block of one tensor, scrambles the sums with the block's number, and adds
them to the tensor's; integer sums are exact in any order, so the digits are those of a CPU.
"""

# Triton reads the kernels' annotations itself, and knows none of Python's.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from slime_core.digest import BLOCK, finished, keys, words_of
from torch import Tensor

_STEP = 2048


@triton.jit
def _mixed(x):
    """The finaliser of SplitMix64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _add_block(table, count, owners, keys, sums, block: tl.constexpr, step: tl.constexpr):
    """``table``: address, number of words and first program of each of ``count`` tensors."""
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    size = tl.load(table + count + owner)
    place = program - tl.load(table + 2 * count + owner)
    words = tl.load(table + owner).to(tl.pointer_type(tl.int32))
    start = place.to(tl.int64) * block
    first = tl.zeros((step,), tl.int64)
    second = tl.zeros((step,), tl.int64)
    for at in range(0, block, step):
        offsets = at + tl.arange(0, step)
        word = tl.load(words + start + offsets, mask=start + offsets < size, other=0).to(tl.int64)
        first += word * tl.load(keys + offsets)
        second += word * tl.load(keys + block + offsets)
    salt = (place + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    total = tl.sum(first, 0).to(tl.uint64) + salt
    tl.atomic_add(sums + 2 * owner, _mixed(total).to(tl.int64))
    total = tl.sum(second, 0).to(tl.uint64) + salt
    tl.atomic_add(sums + 2 * owner + 1, _mixed(total).to(tl.int64))


def tensor_digests(tensors: Sequence[Tensor]) -> list[str]:
    """As ``slime_core.digest.tensor_digests``, of tensors on one GPU."""
    device = tensors[0].device
    words = [words_of(tensor) for tensor in tensors]
    sizes = np.array([each.numel() for each in words], np.int64)
    blocks = -(-sizes // BLOCK)
    firsts = np.cumsum(blocks) - blocks
    table = torch.from_numpy(np.stack([[each.data_ptr() for each in words], sizes, firsts]))
    owners = torch.from_numpy(np.repeat(np.arange(len(words), dtype=np.int32), blocks))
    sums = torch.zeros(len(words), 2, dtype=torch.int64, device=device)
    arguments = (table.to(device), len(words), owners.to(device), keys(device), sums)
    if len(owners):
        launch: Any = _add_block[(len(owners),)]
        with torch.cuda.device_of(sums):
            launch(*arguments, BLOCK, _STEP, num_warps=8)
    num_bytes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    return finished(sums, torch.tensor(num_bytes), torch.from_numpy(blocks))
