"""Norms and scales of all gradients together, in the place of Megatron's loops."""

import math

import pytest
import torch
from slime_testing.ranks import run_on_ranks


def clipped(rank: int, world: int) -> dict[str, list[list[float]]]:
    from megatron.core.optimizer import clip_grads
    from slime_megatron.mcore import patches

    patches.clip_in_few_kernels()
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    unused = torch.zeros(1, dtype=torch.int)
    norm, _ = clip_grads.l2_norm_impl(1, unused, [gradients], False)
    others = [torch.ones(2), torch.ones(1, 1)]
    clip_grads.multi_tensor_scale_impl(1, unused, [gradients, others], 2.0)
    clip_grads.multi_tensor_scale_impl(1, unused, [gradients, gradients], 0.5)
    clip_grads.multi_tensor_scale_impl(1, unused, [[], []], 0.5)
    narrow = [x.bfloat16() for x in (torch.full((3,), 1.0), torch.full((1,), 0.03))]
    of_narrow, _ = clip_grads.l2_norm_impl(1, unused, [narrow], False)
    assert of_narrow.dtype == torch.float32
    lists = {"norm": [norm], "in place": gradients, "elsewhere": others, "of 16 bits": [of_narrow]}
    return {name: [x.flatten().tolist() for x in rows] for name, rows in lists.items()}


def test_gradients_are_normed_and_scaled_together() -> None:
    found = run_on_ranks(1, clipped, megatron=True)[0]
    # bfloat16 has 0.03 as 0.030029296875, and no number between 1.734375 and 1.7421875
    assert found.pop("of 16 bits") == [[pytest.approx(math.hypot(3**0.5, 0.030029296875))]]
    assert found == {
        "norm": [[5.0]],
        "in place": [[1.5, 0.0], [2.0]],
        "elsewhere": [[6.0, 0.0], [8.0]],
    }
