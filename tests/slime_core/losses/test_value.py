import math

import pytest
import torch
from slime_core.batch import ValueInputs
from slime_core.config.algorithm import CriticConfig
from slime_core.losses.report import finish_metrics
from slime_core.losses.value import value_loss
from slime_testing.loss_case import make_tokens, vector


def make(values, old, returns, **layout):
    tokens = make_tokens([len(values)], denominators=float(len(values)), **layout)
    return ValueInputs(tokens, vector(values).requires_grad_(), vector(old), vector(returns))


def test_the_clipped_squared_error_by_hand():
    # V = 1 from 0 clips to 0.2: max(0, 0.64); V = 0.1 is within: (0.1 - 1)^2; V = 1 towards 0:
    # clipping would make it smaller, so the plain error counts
    inputs = make([1.0, 0.1, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0])
    out = value_loss(inputs, CriticConfig(value_clip=0.2))
    assert out.loss.item() == pytest.approx((0.64 + 0.81 + 1.0) / 3)
    found = finish_metrics({name: x.item() for name, x in out.metrics.items()})
    assert found["value_clipfrac"] == pytest.approx(1 / 3)
    assert found["values"] == pytest.approx(0.7)
    assert found["returns"] == pytest.approx(2 / 3)


def test_values_are_clipped_around_the_old_ones_on_either_side():
    # 3 from 2 clips to 2.5, 1 from 2 to 1.5: both end further from the return; -1.2 is within
    inputs = make([3.0, 1.0, -1.2], [2.0, 2.0, -1.0], [4.0, 0.0, 0.0])
    out = value_loss(inputs, CriticConfig(value_clip=0.5))
    assert out.loss.item() == pytest.approx((1.5**2 + 1.5**2 + 1.2**2) / 3)
    assert out.metrics["value_clipfrac"].item() == pytest.approx(2 / 3)
    out.loss.backward()
    assert inputs.values.grad.tolist() == pytest.approx([0.0, 0.0, 2 * -1.2 / 3])


def test_no_metric_holds_on_to_the_graph():
    out = value_loss(make([1.0], [0.0], [2.0]), CriticConfig())
    assert {"loss", "value_loss", "values"} <= set(out.metrics)
    assert out.loss.requires_grad
    assert not any(x.requires_grad for x in out.metrics.values())


def test_a_clipped_value_has_no_gradient():
    inputs = make([1.0, 0.1], [0.0, 0.0], [1.0, 1.0])
    value_loss(inputs, CriticConfig(value_clip=0.2)).loss.backward()
    assert inputs.values.grad.tolist() == pytest.approx([0.0, 2 * (0.1 - 1) / 2])


def test_untrained_tokens_take_no_part():
    inputs = make([0.1, math.nan], [0.0, math.inf], [1.0, -math.inf], mask=[1.0, 0.0])
    out = value_loss(inputs, CriticConfig())
    out.loss.backward()
    assert out.loss.item() == pytest.approx(0.81 / 2)
    assert inputs.values.grad.tolist() == pytest.approx([2 * (0.1 - 1) / 2, 0.0])
    assert all(x.isfinite() for x in out.metrics.values())


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    old, returns = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    tokens = make_tokens([2, 4], mask=[1.0, 0.0, 1.0, 1.0, 1.0, 1.0])

    def loss(values):
        return value_loss(ValueInputs(tokens, values, old, returns), CriticConfig()).loss

    start = (old + 0.3 * torch.randn(6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (start,))
