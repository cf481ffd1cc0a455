import pytest
import torch
from slime_core.batch import LossInputs
from slime_core.losses.aggregate import denominators, step_divisor
from slime_core.losses.sft import sft_loss


def make_inputs(log_probs, mask, denominator, sample):
    n = len(log_probs)
    return LossInputs(
        log_probs=torch.tensor(log_probs),
        old_log_probs=torch.zeros(n),
        advantages=torch.zeros(n),
        mask=torch.tensor(mask),
        denominators=torch.tensor(denominator),
        sample=torch.tensor(sample),
        num_samples=max(sample) + 1,
    )


def test_denominators_of_the_two_means():
    counts = torch.tensor([4.0, 0.0])
    assert denominators(counts, calculate_per_token_loss=False).tolist() == [4.0, 1.0]
    assert denominators(counts, calculate_per_token_loss=True).tolist() == [1.0, 1.0]
    assert step_divisor(8, 100.0, calculate_per_token_loss=False) == 8.0
    assert step_divisor(8, 100.0, calculate_per_token_loss=True) == 100.0
    assert step_divisor(8, 0.0, calculate_per_token_loss=True) == 1.0


def test_the_mean_over_rollouts_weighs_segments_by_their_tokens():
    # rollout 0: two segments, losses 1, 1 | 4; rollout 1: losses 3 and one token not trained on
    inputs = make_inputs(
        [-1.0, -1.0, -4.0, -3.0, -9.0],
        [1.0, 1.0, 1.0, 1.0, 0.0],
        [3.0, 3.0, 3.0, 1.0, 1.0],
        [0, 0, 1, 2, 2],
    )
    assert sft_loss(inputs).loss.item() / 2 == pytest.approx((2.0 + 3.0) / 2)
