import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slime_core.losses.surrogates import cispo, clipped, sapo
from slime_testing.loss_case import vector

RATIOS = st.lists(st.floats(0.01, 20.0), min_size=1, max_size=8)


def slope(function, ratio, advantage):
    """dL/dr at one point."""
    r = vector([ratio]).requires_grad_()
    (found,) = torch.autograd.grad(function(r, vector([advantage])).loss.sum(), r)
    return found.item()


def test_the_soft_gate_by_hand():
    # tau = 1: L = -4 sigmoid(0.5) at r = 1.5; tau = 2 for A = -1: 2 sigmoid(-1) at r = 0.5
    found = sapo(vector([1.5, 0.5]), vector([1.0, -1.0]), positive=1.0, negative=2.0)
    sigmoid = torch.sigmoid(vector([0.5, -1.0])).tolist()
    assert found.loss.tolist() == pytest.approx([-4 * sigmoid[0], 2 * sigmoid[1]])
    assert found.clipped.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("advantage", [2.0, -3.0])
@pytest.mark.parametrize("tau", [0.5, 1.0, 1.05, 4.0])
def test_on_policy_every_surrogate_has_the_gradient_of_the_plain_one(advantage, tau):
    plain = -advantage
    soft = slope(lambda r, a: sapo(r, a, positive=tau, negative=tau), 1.0, advantage)
    hard = slope(lambda r, a: clipped(r, a, low=0.2, high=0.2), 1.0, advantage)
    assert soft == pytest.approx(plain)
    assert hard == pytest.approx(plain)


def test_the_soft_gate_closes_as_the_ratio_leaves_one():
    def size(ratio):
        return abs(slope(lambda r, a: sapo(r, a, positive=2.0, negative=2.0), ratio, 1.0))

    assert size(1.0) > size(1.5) > size(3.0) > size(6.0)
    assert size(6.0) < 1e-3


def test_a_bad_token_costs_at_most_its_advantage_times_the_dual_bound():
    # A = -2: 1.5 * 2 is below 3 * 2, 10 * 2 is not
    found = clipped(vector([1.5, 10.0]), vector([-2.0, -2.0]), low=0.2, high=0.2, dual=3.0)
    assert found.loss.tolist() == pytest.approx([3.0, 6.0])


@given(RATIOS, st.floats(-5, 5))
def test_clipping_is_pessimistic(ratios, advantage):
    r, a = vector(ratios), vector([advantage] * len(ratios))
    loss = clipped(r, a, low=0.2, high=0.3).loss
    assert (loss >= -r * a - 1e-12).all()
    dual = clipped(r, a, low=0.2, high=0.3, dual=3.0).loss
    assert (dual <= loss + 1e-12).all()
    if advantage >= 0:
        assert torch.equal(dual, loss)


@given(RATIOS)
def test_cispo_keeps_the_gradient_of_every_token(ratios):
    log_probs = torch.zeros(len(ratios), dtype=torch.float64, requires_grad=True)
    ratio = vector(ratios)
    cispo(ratio, log_probs, torch.ones_like(ratio), low=1.0, high=1.0).loss.sum().backward()
    assert log_probs.grad.tolist() == pytest.approx((-ratio.clamp(0.0, 2.0)).tolist())


@given(st.floats(0.05, 5.0), st.sampled_from([-1.5, 2.0]))
def test_gradients_are_those_of_finite_differences(ratio, advantage):
    near_a_kink = min(abs(ratio - edge) for edge in (0.8, 1.2, 3.0)) < 1e-3
    r = vector([ratio]).requires_grad_()
    a = vector([advantage])
    assert torch.autograd.gradcheck(lambda x: sapo(x, a, positive=1.0, negative=1.05).loss, (r,))
    if not near_a_kink:
        assert torch.autograd.gradcheck(lambda x: clipped(x, a, low=0.2, high=0.2).loss, (r,))
        assert torch.autograd.gradcheck(
            lambda x: clipped(x, a, low=0.2, high=0.2, dual=3.0).loss, (r,)
        )
