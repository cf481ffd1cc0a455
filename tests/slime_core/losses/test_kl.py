import math

import pytest
import torch
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
