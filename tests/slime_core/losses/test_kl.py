import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slime_core.losses.kl import approx_kl


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", 0.5),
        ("k2", 0.125),
        ("k3", math.exp(-0.5) - 0.5),
        ("low_var_kl", math.exp(-0.5) - 0.5),
    ],
)
def test_estimators_by_hand(kind, expected):
    assert approx_kl(torch.tensor([-1.0]), torch.tensor([-1.5]), kind).item() == pytest.approx(
        expected
    )


def test_low_variance_is_clamped_and_k3_is_not():
    far = (torch.tensor([-9.0]), torch.tensor([-1.0]))
    assert approx_kl(*far, "low_var_kl").item() == 10.0
    assert approx_kl(*far, "k3").item() == pytest.approx(math.exp(8) - 9, rel=1e-6)


def test_an_estimator_that_is_not_there_names_those_that_are():
    with pytest.raises(ValueError, match="one of k1, k2, k3, low_var_kl, not 'k5'"):
        approx_kl.__wrapped__(torch.zeros(1), torch.zeros(1), "k5")


def test_all_are_exactly_zero_for_equal_policies():
    x = torch.randn(20)
    for kind in ("k1", "k2", "k3", "low_var_kl"):
        assert approx_kl(x, x.clone(), kind).abs().max().item() == 0.0


def test_k1_and_k3_agree_in_expectation():
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    exact = (p * (p / q).log()).sum().item()
    for kind in ("k1", "k3"):
        assert (p * approx_kl(p.log(), q.log(), kind)).sum().item() == pytest.approx(exact)


def test_a_ratio_weighs_the_estimate():
    d = approx_kl(torch.tensor([-1.0]), torch.tensor([-1.5]), "k1", ratio=torch.tensor([3.0]))
    assert d.item() == pytest.approx(1.5)


# Expectations by enumeration: every letter of a vocabulary of five, weighed with the probability of
# drawing it.

LOGITS = torch.tensor([0.3, -0.9, 1.1, 0.0, -0.2], dtype=torch.float64)
BASE = torch.tensor([-0.5, 0.4, 0.8, 0.1, -1.0], dtype=torch.float64).log_softmax(0)
OLD = torch.tensor([0.9, -0.1, 0.2, -0.4, 0.5], dtype=torch.float64).log_softmax(0)


def expected_gradient(kind, *, logits=LOGITS, base=BASE, old=None):
    """Of the loss of a letter drawn from the policy itself, or from ``old`` and weighed."""
    leaf = logits.clone().requires_grad_()
    log_probs = leaf.log_softmax(0)
    drawn = (log_probs if old is None else old).detach().exp()
    ratio = None if old is None else torch.exp(log_probs - old)
    loss = (drawn * approx_kl(log_probs, base, kind, ratio=ratio)).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def gradient_of(divergence, logits=LOGITS):
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(divergence(leaf.log_softmax(0)), leaf)
    return gradient


def forward_kl(log_probs, base=BASE):
    """KL(policy || base)."""
    return (log_probs.exp() * (log_probs - base)).sum()


def backward_kl(log_probs, base=BASE):
    """KL(base || policy)."""
    return (base.exp() * (base - log_probs)).sum()


def test_k1_as_a_loss_has_a_gradient_of_mean_zero():
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros(5, dtype=torch.float64))
    assert gradient_of(forward_kl).abs().max() > 0.1


def test_k2_as_a_loss_has_the_gradient_of_the_kl():
    torch.testing.assert_close(expected_gradient("k2"), gradient_of(forward_kl))


@pytest.mark.parametrize("kind", ["k3", "low_var_kl"])
def test_k3_as_a_loss_has_the_gradient_of_the_kl_the_other_way_round(kind):
    torch.testing.assert_close(expected_gradient(kind), gradient_of(backward_kl))
    assert not torch.allclose(expected_gradient(kind), gradient_of(forward_kl), rtol=0.1)


@pytest.mark.parametrize("old", [LOGITS.log_softmax(0), OLD], ids=["on policy", "off policy"])
@pytest.mark.parametrize("kind", ["k1", "k3", "low_var_kl"])
def test_weighed_with_the_ratio_it_has_the_gradient_of_the_kl(kind, old):
    torch.testing.assert_close(expected_gradient(kind, old=old), gradient_of(forward_kl))


def test_k2_weighed_with_the_ratio_has_the_gradient_of_its_own_mean_instead():
    def mean_of_k2(log_probs):
        return (log_probs.exp() * (log_probs - BASE) ** 2 / 2).sum()

    found = expected_gradient("k2", old=OLD)
    torch.testing.assert_close(found, gradient_of(mean_of_k2))
    assert not torch.allclose(found, gradient_of(forward_kl), rtol=0.1)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=7), st.randoms(use_true_random=False))
def test_the_expectations_hold_for_any_three_policies(values, random):
    logits = torch.tensor(values, dtype=torch.float64)
    base, old = (
        torch.tensor([random.uniform(-2, 2) for _ in values], dtype=torch.float64).log_softmax(0)
        for _ in range(2)
    )
    exact = gradient_of(lambda x: forward_kl(x, base), logits)
    zeros = torch.zeros_like(logits)
    torch.testing.assert_close(expected_gradient("k1", logits=logits, base=base), zeros)
    torch.testing.assert_close(expected_gradient("k2", logits=logits, base=base), exact)
    other_way = gradient_of(lambda x: backward_kl(x, base), logits)
    torch.testing.assert_close(expected_gradient("k3", logits=logits, base=base), other_way)
    for kind in ("k1", "k3"):
        found = expected_gradient(kind, logits=logits, base=base, old=old)
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "low_var_kl"])
@pytest.mark.parametrize("weighed", [False, True])
def test_gradients_are_those_of_finite_differences(kind, weighed):
    start = LOGITS.log_softmax(0).requires_grad_()

    def kl(log_probs):
        ratio = torch.exp(log_probs - OLD) if weighed else None
        return approx_kl(log_probs, BASE, kind, ratio=ratio)

    assert torch.autograd.gradcheck(kl, (start,))
