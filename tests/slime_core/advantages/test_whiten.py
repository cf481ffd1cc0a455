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


def test_a_spread_as_small_as_the_guard_is_not_blown_up_to_one():
    # the variance of -1e-4 and 1e-4 about their mean is 2e-8, and 1e-8 is added
    x = torch.tensor([0.0, 2e-4], dtype=torch.float64)
    expected = 1e-4 / 3e-8**0.5
    found = whiten(x, torch.ones(2), LocalReduce())
    assert found.tolist() == pytest.approx([-expected, expected])


def test_float32_numbers_are_those_of_float64_rounded():
    x = 1e3 + torch.rand(50, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(50) % 3 > 0).float()
    found = whiten(x, mask, LocalReduce())
    assert found.dtype == torch.float32
    assert found.tolist() == whiten(x.double(), mask, LocalReduce()).float().tolist()


def test_a_large_mean_does_not_eat_the_spread():
    x = torch.tensor([1e6, 1e6 + 1, 1e6 + 2])
    assert whiten(x, torch.ones(3), LocalReduce()).tolist() == pytest.approx([-1.0, 0.0, 1.0])


@pytest.mark.parametrize("x", [[], [5.0], [2.0, 2.0]])
def test_nothing_to_scale_gives_zeros(x):
    x = torch.tensor(x)
    assert whiten(x, torch.ones_like(x), LocalReduce()).tolist() == [0.0] * len(x)


def test_without_a_trained_token_nothing_breaks():
    assert whiten(torch.tensor([3.0]), torch.zeros(1), LocalReduce()).isfinite().all()


class Recorded:
    """What the ranks would have exchanged: the first pass collects, the second is handed sums."""

    def __init__(self):
        self.sums = []

    def run(self, parts):
        """``whiten`` on each rank, level by level: every rank's n-th sum before any goes on."""
        for level in range(2):
            total = sum(self._collect(part, level) for part in parts)
            self.sums.append(total)
        return [whiten(*part, _Handed(self.sums)) for part in parts]

    def _collect(self, part, level):
        asked = _Handed(self.sums)
        whiten(*part, asked)
        return asked.given[level]


class _Handed:
    def __init__(self, sums):
        self.sums, self.given = sums, []

    def sum(self, x):
        self.given.append(x)
        known = len(self.given) <= len(self.sums)
        return self.sums[len(self.given) - 1] if known else x


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.booleans(), st.integers(0, 3)), max_size=24),
    st.integers(0, 10**6),
)
@settings(max_examples=120, deadline=None)
def test_how_tokens_are_spread_over_ranks_does_not_matter(rows, offset):
    x = torch.tensor([offset + v for v, _, _ in rows], dtype=torch.float64)
    mask = torch.tensor([float(m) for _, m, _ in rows], dtype=torch.float64)
    owner = torch.tensor([r for _, _, r in rows], dtype=torch.int64)
    parts = [(x[owner == r], mask[owner == r]) for r in range(5)]  # the last rank is empty
    found = Recorded().run(parts)
    whole = whiten(x, mask, LocalReduce())
    for rank, mine in enumerate(found):
        torch.testing.assert_close(mine, whole[owner == rank], rtol=1e-6, atol=1e-6)


@given(st.lists(st.tuples(st.floats(-50, 50), st.booleans()), max_size=24))
@settings(max_examples=100, deadline=None)
def test_the_trained_tokens_get_mean_0_and_variance_1_and_the_others_0(rows):
    x = torch.tensor([v for v, _ in rows], dtype=torch.float64)
    mask = torch.tensor([float(m) for _, m in rows], dtype=torch.float64)
    found = whiten(torch.where(mask > 0, x, torch.nan), mask, LocalReduce())
    assert (found[mask == 0] == 0).all()
    trained = found[mask > 0].tolist()
    if len(trained) > 1 and statistics.stdev(x[mask > 0].tolist()) > 0.1:
        assert statistics.fmean(trained) == pytest.approx(0, abs=1e-9)
        assert statistics.stdev(trained) == pytest.approx(1, rel=1e-5)


def test_gradients():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: whiten(v, mask, LocalReduce()), (x,))


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
