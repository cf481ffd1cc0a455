import math
from dataclasses import replace

import pytest
import torch
from slime_core.batch import PairInputs
from slime_core.config.algorithm import PreferenceConfig
from slime_core.errors import SampleError
from slime_core.losses.preference import dpo_loss, last_scores, reward_model_loss
from slime_core.reduce import LocalReduce
from slime_testing.loss_case import make_tokens, vector

ALONE = LocalReduce()


def make(lengths, scores, reference, *, pair=(0, 0), chosen=(True, False), mask=None):
    return PairInputs(
        tokens=make_tokens(lengths, mask=mask),
        scores=vector(scores).requires_grad_(),
        pair=torch.tensor(pair),
        chosen=torch.tensor(chosen),
        ref_scores=vector(reference),
    )


def softplus(x):
    return math.log1p(math.exp(x))


def test_direct_preference_optimisation_by_hand():
    # the chosen response gained 1 + 2, the rejected one lost 1: x = 0.5 * (3 + 1)
    inputs = make([2, 1], [-1.0, -1.0, -3.0], [-2.0, -3.0, -2.0])
    out = dpo_loss(inputs, PreferenceConfig(dpo_beta=0.5), ALONE)
    assert out.loss.item() == pytest.approx(softplus(-2.0))
    assert out.metrics["rewards/chosen"].item() == pytest.approx(1.5)
    assert out.metrics["rewards/rejected"].item() == pytest.approx(-0.5)
    assert out.metrics["rewards/margin"].item() == pytest.approx(2.0)
    assert out.metrics["rewards/accuracy"].item() == 1.0


def test_equal_policies_know_nothing():
    inputs = make([1, 2], [-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0])
    out = dpo_loss(inputs, PreferenceConfig(), ALONE)
    assert out.loss.item() == pytest.approx(math.log(2))
    assert out.metrics["rewards/accuracy"].item() == 0.0


def test_smoothed_labels_hinge_and_ipo_by_hand():
    inputs = make([2, 1], [-1.0, -1.0, -3.0], [-2.0, -3.0, -2.0])
    smoothed = PreferenceConfig(dpo_beta=0.5, dpo_label_smoothing=0.1)
    expected = 0.9 * softplus(-2.0) + 0.1 * softplus(2.0)
    assert dpo_loss(inputs, smoothed, ALONE).loss.item() == pytest.approx(expected)
    hinge = PreferenceConfig(dpo_beta=0.1, dpo_loss_type="hinge")
    assert dpo_loss(inputs, hinge, ALONE).loss.item() == pytest.approx(1 - 0.4)
    # means over tokens: 1.5 and -1; the target is 1 / (2 * 0.25)
    ipo = PreferenceConfig(dpo_beta=0.25, dpo_loss_type="ipo")
    assert dpo_loss(inputs, ipo, ALONE).loss.item() == pytest.approx((2.5 - 2.0) ** 2)


def test_pairs_are_found_by_number_not_by_place():
    ordered = make(
        [1] * 4, [1.0, 2.0, 3.0, 4.0], [0.0] * 4, pair=(5, 5, 9, 9), chosen=(True, False) * 2
    )
    shuffled = make(
        [1] * 4,
        [4.0, 1.0, 3.0, 2.0],
        [0.0] * 4,
        pair=(9, 5, 9, 5),
        chosen=(False, True, True, False),
    )
    losses = [dpo_loss(inputs, PreferenceConfig(), ALONE).loss for inputs in (ordered, shuffled)]
    assert losses[0].item() == pytest.approx(losses[1].item())


def test_half_a_pair_is_named():
    inputs = make([1, 1], [1.0, 2.0], [0.0, 0.0], pair=(3, 4))
    with pytest.raises(SampleError, match=r"pairs \[3\].*\[4\]"):
        dpo_loss(inputs, PreferenceConfig(), ALONE)


def test_a_reward_model_scores_at_the_last_token_of_the_response():
    tokens = make_tokens([2, 3], mask=[1.0, 0.0, 1.0, 1.0, 1.0])
    order = torch.tensor([3, 0, 4, 1, 2])  # a rank may hold its tokens in any order
    mixed = replace(
        tokens,
        mask=tokens.mask[order],
        denominators=tokens.denominators[order],
        sample=tokens.sample[order],
        position=tokens.position[order],
    )
    values = vector([10.0, 11.0, 20.0, 21.0, 22.0])
    assert last_scores(values[order], mixed, ALONE).tolist() == [11.0, 22.0]
    inputs = PairInputs(mixed, values[order], torch.tensor([0, 0]), torch.tensor([False, True]))
    out = reward_model_loss(inputs, ALONE)
    assert out.loss.item() == pytest.approx(softplus(-11.0))
    assert out.metrics["rewards/accuracy"].item() == 1.0


def test_no_pairs_are_no_loss():
    empty = torch.zeros(0, dtype=torch.long)
    inputs = PairInputs(make_tokens([]), vector([]).requires_grad_(), empty, empty.bool())
    out = reward_model_loss(inputs, ALONE)
    out.loss.backward()
    assert out.loss.item() == 0.0


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
def test_gradients_are_those_of_finite_differences(kind):
    torch.manual_seed(0)
    lengths, pair = [2, 3, 1, 2], torch.tensor([1, 0, 0, 1])
    reference = torch.randn(8, dtype=torch.float64)
    config = PreferenceConfig(dpo_loss_type=kind, dpo_beta=0.3)
    base = PairInputs(
        make_tokens(lengths, mask=[1.0, 1, 0, 1, 1, 1, 1, 1]),
        reference,
        pair,
        torch.tensor([True, True, False, False]),
        reference,
    )
    start = torch.randn(8, dtype=torch.float64, requires_grad=True)
    for loss in (lambda x: dpo_loss(x, config, ALONE), lambda x: reward_model_loss(x, ALONE)):
        assert torch.autograd.gradcheck(lambda x, f=loss: f(replace(base, scores=x)).loss, (start,))


def test_garbage_where_nothing_is_trained_on_is_harmless():
    inputs = make([2, 1], [-1.0, math.inf, -3.0], [-2.0, math.nan, -2.0], mask=[1.0, 0.0, 1.0])
    out = dpo_loss(inputs, PreferenceConfig(), ALONE)
    out.loss.backward()
    assert math.isfinite(out.loss.item())
    assert torch.isfinite(inputs.scores.grad).all()
