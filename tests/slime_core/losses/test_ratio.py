import math

import pytest
import torch
from slime_core.losses.ratio import ratio_of
from slime_testing.loss_case import vector


def test_the_exponent_of_a_ratio_is_kept_within_20():
    found = ratio_of(vector([0.0, math.log(3), 19.0, 25.0, -19.0, -25.0]))
    ends = [math.exp(19), math.exp(20), math.exp(-19), math.exp(-20)]
    assert found.tolist() == pytest.approx([1.0, 3.0, *ends])


def test_beyond_the_limit_nothing_carries_gradient():
    log_ratio = vector([19.0, 20.5, -19.0, -20.5]).requires_grad_()
    (gradient,) = torch.autograd.grad(ratio_of(log_ratio).sum(), log_ratio)
    assert gradient.tolist() == pytest.approx([math.exp(19), 0.0, math.exp(-19), 0.0])
