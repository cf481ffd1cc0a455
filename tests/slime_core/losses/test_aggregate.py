import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slime_core.batch import LossInputs, Ragged, TrainBatch
from slime_core.losses.aggregate import denominators, masked, step_divisor, weighted_sum
from slime_core.losses.sft import sft_loss
from slime_core.schedule.plan import StepCounts
from slime_testing.loss_case import make_tokens, vector

MODES = ("token", "sample", "rollout", "constant", "sequence-sum")


def make_batch(masks, rollouts):
    """Samples without prompts worth mentioning."""
    rows = [torch.tensor(mask) for mask in masks]
    n = len(rows)
    totals = {
        r: sum(sum(m) for m, s in zip(masks, rollouts, strict=True) if s == r) for r in rollouts
    }
    return TrainBatch(
        tokens=Ragged.from_tensors([torch.ones(len(row) + 1).long() for row in rows]),
        response_lengths=torch.tensor([len(row) for row in rows]),
        loss_mask=Ragged.from_tensors(rows),
        rewards=torch.zeros(n),
        raw_rewards=torch.zeros(n),
        truncated=torch.zeros(n, dtype=torch.bool),
        sample_ids=torch.arange(n),
        group_ids=torch.zeros(n).long(),
        rollout_ids=torch.tensor(rollouts),
        rollout_token_counts=torch.tensor([float(totals[r]) for r in rollouts]),
    )


def counts_of(batch):
    return StepCounts(
        len(set(batch.rollout_ids.tolist())), batch.num_samples, float(batch.loss_mask.values.sum())
    )


def mean(batch, losses, mode):
    """The loss of a step in one piece."""
    below = denominators(batch, mode, constant=10.0)
    lengths = batch.response_lengths.tolist()
    tokens = make_tokens(
        lengths,
        mask=batch.loss_mask.values.tolist(),
        denominators=torch.repeat_interleave(below, batch.response_lengths).tolist(),
    )
    return weighted_sum(vector(losses), tokens).item() / step_divisor(counts_of(batch), mode)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token", (1 + 2 + 3 + 6) / 4),
        ("sample", (1.5 + 3 + 6 + 0) / 4),
        ("rollout", ((1 + 2 + 3) / 3 + 6 + 0) / 3),
        ("constant", (6 / 10 + 6 / 10 + 0) / 3),
        ("sequence-sum", (6 + 6 + 0) / 3),
    ],
)
def test_the_five_means_by_hand(mode, expected):
    # one rollout in two segments with losses 1, 2 | 3, one with 6 and a token that is not trained
    # on, one with nothing to train on
    batch = make_batch([[1.0, 1.0], [1.0], [1.0, 0.0], [0.0]], [7, 7, 8, 9])
    assert mean(batch, [1.0, 2.0, 3.0, 6.0, 100.0, 100.0], mode) == pytest.approx(expected)


def test_nothing_to_train_on_is_no_division_by_zero():
    batch = make_batch([[0.0], [0.0, 0.0]], [0, 1])
    for mode in MODES:
        assert mean(batch, [1.0, 1.0, 1.0], mode) == 0.0


def test_a_step_with_one_trained_token_divides_by_one():
    assert step_divisor(StepCounts(5, 6, 1.0), "token") == 1.0
    assert step_divisor(StepCounts(5, 6, 0.0), "token") == 1.0
    assert step_divisor(StepCounts(5, 6, 1.0), "sample") == 6.0
    for mode in ("rollout", "constant", "sequence-sum"):
        assert step_divisor(StepCounts(5, 6, 1.0), mode) == 5.0


def test_a_constant_length_is_one_unless_told_otherwise():
    batch = make_batch([[1.0, 1.0], [0.0]], [0, 1])
    assert denominators(batch, "constant").tolist() == [1.0, 1.0]


def test_what_is_not_trained_on_is_zero_whatever_stands_there():
    tokens = make_tokens([4], mask=[1.0, 0.0, 0.0, 1.0], denominators=2.0)
    odd = vector([3.0, torch.nan, -torch.inf, -1.0]).requires_grad_()
    assert masked(odd, tokens).tolist() == [3.0, 0.0, 0.0, -1.0]
    total = weighted_sum(odd, tokens)
    (gradient,) = torch.autograd.grad(total, odd)
    assert total.item() == (3.0 - 1.0) / 2
    assert gradient.tolist() == [0.5, 0.0, 0.0, 0.5]


@given(st.data())
def test_parts_add_up_to_the_whole_however_a_step_is_cut(data):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    rollouts = [data.draw(st.integers(0, 2)) for _ in lengths]
    masks = [[float(data.draw(st.booleans())) for _ in range(n)] for n in lengths]
    losses = [data.draw(st.floats(-5, 5)) for _ in range(sum(lengths))]
    batch = make_batch(masks, rollouts)
    side = torch.tensor([data.draw(st.booleans()) for _ in range(sum(lengths))])
    for mode in MODES:
        whole = mean(batch, losses, mode)
        parts = [
            mean(batch, torch.where(keep, vector(losses), vector([0.0])).tolist(), mode)
            for keep in (side, ~side)
        ]
        assert sum(parts) == pytest.approx(whole, abs=1e-9)


def test_the_likelihood_of_demonstrations_ignores_what_is_masked():
    tokens = make_tokens([2, 1], mask=[1.0, 0.0, 1.0], denominators=[1.0, 1.0, 1.0])
    log_probs = vector([-1.0, -torch.inf, -4.0]).requires_grad_()
    inputs = LossInputs(tokens, log_probs, vector([0.0] * 3), vector([0.0] * 3))
    out = sft_loss(inputs)
    loss = out.loss
    assert not out.metrics["loss"].requires_grad
    loss.backward()
    assert loss.item() == 5.0
    assert log_probs.grad.tolist() == [-1.0, 0.0, -1.0]
    nothing = LossInputs(make_tokens([]), vector([]), vector([]), vector([]))
    assert sft_loss(nothing).loss.item() == 0.0
