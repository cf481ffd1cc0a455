"""Norms and scales of all gradients together, in the place of Megatron's loops."""

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
    lists = {"norm": [norm], "in place": gradients, "elsewhere": others}
    return {name: [x.flatten().tolist() for x in rows] for name, rows in lists.items()}


def test_gradients_are_normed_and_scaled_together() -> None:
    assert run_on_ranks(1, clipped, megatron=True)[0] == {
        "norm": [[5.0]],
        "in place": [[1.5, 0.0], [2.0]],
        "elsewhere": [[6.0, 0.0], [8.0]],
    }
