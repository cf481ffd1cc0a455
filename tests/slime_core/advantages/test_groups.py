import statistics
from math import inf, nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core.advantages.groups import (
    Grouping,
    against_baseline,
    decoupled,
    group_relative,
    leave_one_out,
    maximum_likelihood,
)
from slime_core.errors import SampleError

ESTIMATES = {
    "relative": group_relative,
    "centred": lambda r, g: group_relative(r, g, normalize_std=False),
    "leave one out": leave_one_out,
    "maximum likelihood": maximum_likelihood,
}


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


def grouping(groups, rollouts=None, valid=None):
    n = len(groups)
    return Grouping(
        torch.tensor(groups, dtype=torch.int64),
        torch.tensor(list(range(n)) if rollouts is None else rollouts, dtype=torch.int64),
        torch.tensor([True] * n if valid is None else valid, dtype=torch.bool),
    )


@st.composite
def batches(draw):
    """Groups of any size, in any order, with segments and samples that do not count."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from([3, 7, 10**12]),
                st.integers(0, 3),
                st.booleans(),
                st.sampled_from([0.0, 0.25, 1.0, 2.0, 3.5]),
            ),
            max_size=14,
        )
    )
    return (
        vector([row[3] for row in rows]),
        grouping([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]),
    )


def by_hand(name, rewards, where):
    """The same from python lists and statistics, group by group."""
    result = [0.0] * len(rewards)
    ids = where.group_ids.tolist()
    for group in set(ids):
        rows = [i for i, g in enumerate(ids) if g == group and where.valid[i]]
        executions = {}
        for i in rows:
            executions.setdefault(int(where.rollout_ids[i]), []).append(float(rewards[i]))
        means = {key: statistics.fmean(values) for key, values in executions.items()}
        if len(means) < 2:
            continue
        mean, std = statistics.fmean(means.values()), statistics.stdev(means.values())
        for i in rows:
            mine = int(where.rollout_ids[i])
            others = statistics.fmean(m for key, m in means.items() if key != mine)
            difference = float(rewards[i]) - mean
            result[i] = {
                "relative": difference / (std + 1e-6) if std > 1e-9 else 0.0,
                "centred": difference if std > 1e-9 else 0.0,
                "leave one out": float(rewards[i]) - others,
                "maximum likelihood": difference / mean if mean > 0 else 0.0,
            }[name]
    return result


@pytest.mark.parametrize("name", ESTIMATES)
@given(batch=batches())
@settings(max_examples=80, deadline=None)
def test_estimates_equal_their_definition(name, batch):
    rewards, where = batch
    found = ESTIMATES[name](rewards, where)
    assert found.tolist() == pytest.approx(by_hand(name, rewards, where), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ESTIMATES)
@given(batch=batches(), random=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_samples_does_not_matter(name, batch, random):
    rewards, where = batch
    order = list(range(rewards.numel()))
    random.shuffle(order)
    shuffled = Grouping(where.group_ids[order], where.rollout_ids[order], where.valid[order])
    found = ESTIMATES[name](rewards[order], shuffled)
    torch.testing.assert_close(found, ESTIMATES[name](rewards, where)[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ESTIMATES)
@given(batch=batches(), odd=st.sampled_from([nan, inf, -inf, -1e30]))
@settings(max_examples=40, deadline=None)
def test_what_is_not_valid_neither_counts_nor_gets_anything(name, batch, odd):
    rewards, where = batch
    spoilt = torch.where(where.valid, rewards, odd)
    found = ESTIMATES[name](spoilt, where)
    assert found.tolist() == ESTIMATES[name](rewards, where).tolist()
    assert (found[~where.valid] == 0).all()


@pytest.mark.parametrize("name", ["relative", "centred", "leave one out", "maximum likelihood"])
def test_equal_rewards_and_groups_of_one_get_exactly_0(name):
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.7], dtype=torch.float32)
    found = ESTIMATES[name](rewards, grouping([0, 0, 0, 1]))
    assert found.tolist() == [0.0] * 4
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", ESTIMATES)
def test_no_samples_have_no_advantages(name):
    assert ESTIMATES[name](vector([]), grouping([])).tolist() == []


@pytest.mark.parametrize("name", ESTIMATES)
def test_a_reward_that_is_not_finite_names_its_group(name):
    with pytest.raises(SampleError, match="group 8 has the reward nan"):
        ESTIMATES[name](vector([1.0, nan]), grouping([4, 8]))


@pytest.mark.parametrize("name", ESTIMATES)
def test_float32_rewards_have_the_advantages_of_the_same_float64_ones_rounded(name):
    rewards = torch.rand(40, generator=torch.Generator().manual_seed(0))
    where = grouping([i % 6 for i in range(40)])
    found = ESTIMATES[name](rewards, where)
    assert found.tolist() == ESTIMATES[name](rewards.double(), where).float().tolist()


@pytest.mark.parametrize("name", ESTIMATES)
def test_gradients(name):
    rewards = vector([0.3, 1.2, 0.7, 0.4, 2.0]).requires_grad_()
    where = grouping([1, 1, 1, 2, 2], [0, 0, 1, 2, 3])
    assert torch.autograd.gradcheck(lambda r: ESTIMATES[name](r, where), (rewards,))


def test_gradients_with_a_baseline_and_of_several_rewards():
    rewards = vector([[0.3, 1.2, 0.7, 0.4], [5.0, 1.0, 2.0, 2.5]]).requires_grad_()
    baselines = vector([0.1, 0.1, 0.2, 0.2]).requires_grad_()
    where = grouping([1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda r: decoupled(r, (1.0, 0.3), where), (rewards,))
    assert torch.autograd.gradcheck(
        lambda r, b: against_baseline(r[0], b, where), (rewards, baselines)
    )


def test_grpo_by_hand():
    # mean 0.25, unbiased deviation 0.5
    found = group_relative(vector([1, 0, 0, 0]), grouping([2] * 4))
    assert found.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)


def test_a_tiny_spread_on_a_large_reward_is_still_a_contrast():
    found = group_relative(vector([1e6, 1e6 + 1e-3]), grouping([0, 0]))
    assert found.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=2e-3)


def test_executions_that_tie_by_rounding_get_0_though_their_segments_differ():
    # 0.6 / 3 and 0.2 are not the same number
    found = group_relative(vector([0.1, 0.2, 0.3, 0.2]), grouping([0] * 4, [0, 0, 0, 1]))
    assert found.tolist() == [0.0] * 4


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_what_ties_by_rounding_is_relative_to_the_size_of_the_rewards(scale):
    apart = group_relative(vector([0, scale]), grouping([0, 0]), normalize_std=False)
    assert apart.tolist() == pytest.approx([-scale / 2, scale / 2])
    tied = group_relative(vector([0.1, 0.2, 0.3, 0.2]) * scale, grouping([0] * 4, [0, 0, 0, 1]))
    assert tied.tolist() == [0.0] * 4


def test_leave_one_out_by_hand():
    found = leave_one_out(vector([5, 3, 2, 9]), grouping([1, 1, 1, 0]))
    assert found.tolist() == [2.5, -0.5, -2.0, 0.0]


def test_leave_one_out_leaves_out_the_whole_execution():
    # executions 4 (of 5 and 3) and 1: neither is its own baseline
    found = leave_one_out(vector([5, 3, 1]), grouping([0] * 3, [7, 7, 8]))
    assert found.tolist() == [4.0, 2.0, -3.0]


def test_leave_one_out_is_the_centred_reward_scaled_by_n_over_n_minus_1():
    rewards, where = vector([0.3, 1.2, 0.7, 0.4]), grouping([0] * 4)
    centred = group_relative(rewards, where, normalize_std=False)
    torch.testing.assert_close(leave_one_out(rewards, where), centred * 4 / 3)


def test_remax_by_hand():
    where = grouping([0, 0, 1], valid=[True, False, True])
    found = against_baseline(vector([1, nan, 0]), vector([0.5, nan, 2.0]), where)
    assert found.tolist() == [0.5, 0.0, -2.0]


def test_remax_without_a_baseline_says_which_group():
    with pytest.raises(SampleError, match=r"group 6 has no `baseline`.*remax"):
        against_baseline(vector([1, 1]), vector([0.5, nan]), grouping([5, 6]))


def test_maxrl_by_hand():
    # one of four: mean 0.25; three of four: mean 0.75; none
    where = grouping([0] * 4 + [1] * 4 + [2] * 2)
    found = maximum_likelihood(vector([1, 0, 0, 0, 1, 1, 1, 0, 0, 0]), where)
    third = 1 / 3
    assert found.tolist() == pytest.approx([3, -1, -1, -1, third, third, third, -1, 0, 0])


def test_maxrl_refuses_negative_rewards():
    with pytest.raises(SampleError, match=r"group 3 has the reward -1\.0.*0 or more"):
        maximum_likelihood(vector([1, -1]), grouping([3, 3]))


def test_gdpo_tells_mixtures_apart_that_grpo_does_not():
    right, short = [0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 1.0, 0.0]
    where, rewards = grouping([0] * 4), vector([right, short])
    found = decoupled(rewards, (1.0, 1.0), where)
    # right: mean 0.75, deviation 0.957; short: mean 0.25, deviation 0.5
    spread = (11 / 12) ** 0.5
    expected = [-0.75 / spread - 0.5, 0.25 / spread - 0.5, -0.75 / spread + 1.5]
    assert found.tolist()[:3] == pytest.approx(expected, rel=1e-5)
    summed = group_relative(rewards.sum(0), where)
    assert summed[1] == summed[2]
    assert found[1] != found[2]


def test_gdpo_weighs_after_normalising():
    rewards, where = vector([[1, 0], [0, 1000]]), grouping([0, 0])
    found = decoupled(rewards, (1.0, 3.0), where)
    assert found.tolist() == pytest.approx([-(2**0.5), 2**0.5], rel=1e-5)
    centred = decoupled(rewards, (2.0, 0.5), where, normalize_std=False)
    assert centred.tolist() == [1.0 - 250, 250 - 1.0]
