"""Zigzag division of a sequence among context-parallel ranks.

A sequence of padded length L is cut into 2*cp chunks; rank r holds chunk r and chunk 2*cp - 1 - r,
so that under a causal mask every rank attends to equally many pairs.

    cp = 2, L = 8:   rank 0 holds 0 1 6 7     rank 1 holds 2 3 4 5

Source: Megatron-Core's ``get_batch_on_this_cp_rank`` uses the same order.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def chunk_multiple(cp_size: int) -> int:
    """What every sequence's length must be a multiple of."""
    return 2 * cp_size if cp_size > 1 else 1


def local_positions(length: int, *, cp_size: int, cp_rank: int) -> Int[Tensor, " local"]:
    """Positions of a sequence of padded ``length`` that ``cp_rank`` holds, in its order."""
    if cp_size == 1:
        return torch.arange(length)
    assert length % (2 * cp_size) == 0, f"{length} is not a multiple of {2 * cp_size}"
    chunk = length // (2 * cp_size)
    low, high = cp_rank * chunk, (2 * cp_size - 1 - cp_rank) * chunk
    return torch.cat((torch.arange(low, low + chunk), torch.arange(high, high + chunk)))


def gathered_order(lengths: list[int], *, cp_size: int) -> Int[Tensor, " tokens"]:
    """Where each position of the packed whole stands in the ranks' rows laid end to end.

    ``concatenation_over_ranks[gathered_order(lengths)]`` is the packed batch in order.
    """
    held: list[Tensor] = []
    for rank in range(cp_size):
        start = 0
        for length in lengths:
            held.append(start + local_positions(length, cp_size=cp_size, cp_rank=rank))
            start += length
    return torch.argsort(torch.cat(held))
