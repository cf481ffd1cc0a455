"""Sums over ranks, with the gradient that each rank is due."""

import pytest
import torch
from slime_testing.ranks import run_on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def reduce_on_rank(rank: int, world: int) -> tuple[float, float]:
    """Value and gradient of sum_r c_r (sum_s x_s)^2 at x = rank + 1, c = rank + 1."""
    import torch.distributed as dist
    from slime_megatron.mcore.ranks.reduce import GroupReduce

    x = torch.tensor([rank + 1.0], requires_grad=True)
    total = GroupReduce(dist.group.WORLD, torch.device("cpu")).sum(x)
    ((rank + 1) * total**2).sum().backward()
    return float(total), float(x.grad)


def test_a_sum_over_ranks_gives_each_the_gradient_of_what_all_make_of_it():
    for total, grad in run_on_ranks(2, reduce_on_rank, megatron=True):
        # d/dx of 1 (x1 + x2)^2 + 2 (x1 + x2)^2 at x1 + x2 = 3.
        assert (total, grad) == (3.0, 18.0)
