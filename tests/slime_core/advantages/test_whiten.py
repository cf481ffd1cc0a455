import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core.advantages.whiten import whiten
from slime_core.reduce import LocalReduce
from slime_testing.ranks import GlooReduce, run_on_ranks

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


def test_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 99.0])
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert whiten(x, mask, LocalReduce())[:3].tolist() == pytest.approx([-1.0, 0.0, 1.0])


@given(VALUES, st.floats(0.1, 50), st.floats(-1000, 1000))
@settings(max_examples=60, deadline=None)
def test_scale_and_shift_do_not_matter(values, scale, shift):
    if statistics.stdev(values) < 1e-2:
        return
    x = torch.tensor(values, dtype=torch.float64)
    mask = torch.ones_like(x)
    torch.testing.assert_close(
        whiten(x * scale + shift, mask, LocalReduce()),
        whiten(x, mask, LocalReduce()),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_large_mean_does_not_eat_the_spread():
    x = torch.tensor([1e6, 1e6 + 1, 1e6 + 2])
    assert whiten(x, torch.ones(3), LocalReduce()).tolist() == pytest.approx([-1.0, 0.0, 1.0])


@pytest.mark.parametrize("x", [[], [5.0], [2.0, 2.0]])
def test_nothing_to_scale_gives_zeros(x):
    x = torch.tensor(x)
    assert whiten(x, torch.ones_like(x), LocalReduce()).tolist() == [0.0] * len(x)


def test_without_a_trained_token_nothing_breaks():
    assert whiten(torch.tensor([3.0]), torch.zeros(1), LocalReduce()).isfinite().all()


def share(rank, world):
    x = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0])
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    parts = [slice(0, 5), slice(5, 5)] if world == 2 else [slice(0, 5)]
    return whiten(x[parts[rank]], mask[parts[rank]], GlooReduce()).tolist()


def test_a_rank_without_tokens_takes_part():
    whole, empty = run_on_ranks(2, share)
    x = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0])
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    assert whole == pytest.approx(whiten(x, mask, LocalReduce()).tolist())
    assert empty == []
