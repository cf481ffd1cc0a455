import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core.advantages.groups import Grouping
from slime_core.config.algorithm import ShapingConfig
from slime_core.errors import ConfigError
from slime_core.shaping import (
    group_penalty,
    is_active,
    linear_penalty,
    overlong_penalty,
    penalties,
)


def lengths_of(*values):
    return torch.tensor(values, dtype=torch.int64)


def grouping(groups, valid=None):
    valid = [True] * len(groups) if valid is None else valid
    ids = torch.tensor(groups, dtype=torch.int64)
    return Grouping(ids, torch.arange(len(groups)), torch.tensor(valid, dtype=torch.bool))


def test_the_overlong_penalty_by_hand():
    found = overlong_penalty(lengths_of(0, 80, 81, 90, 100, 101, 500), 100, 20)
    assert found.tolist() == [0.0, 0.0, -0.05, -0.5, -1.0, -1.0, -1.0]


def test_the_linear_penalty_by_hand():
    assert linear_penalty(lengths_of(0, 25, 100), 100).tolist() == [0.0, -0.25, -1.0]


def test_the_group_penalty_by_hand():
    lengths, correct = (
        lengths_of(10, 20, 30, 10, 30),
        torch.tensor([True, True, True, False, False]),
    )
    found = group_penalty(lengths, correct, grouping([4] * 5))
    assert found.tolist() == [0.5, 0.0, -0.5, 0.0, -0.5]


def test_lengths_of_other_prompts_and_of_failures_do_not_count():
    lengths = lengths_of(10, 1000, 20, 5, 30)
    where = grouping([0, 1, 0, 0, 0], [True, True, True, False, True])
    found = group_penalty(lengths, torch.ones(5, dtype=torch.bool), where)
    assert found.tolist() == [0.5, 0.0, 0.0, 0.0, -0.5]


def test_no_samples_have_no_penalties():
    empty = lengths_of()
    config = ShapingConfig(
        overlong_buffer_len=1, length_penalty_type="group", length_penalty_coef=1.0
    )
    assert penalties(torch.zeros(0), empty, grouping([]), config, 8).tolist() == []


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 50), st.booleans(), st.booleans()), max_size=12
    )
)
@settings(max_examples=100, deadline=None)
def test_the_group_penalty_equals_its_definition(rows):
    where = grouping([r[0] for r in rows], [r[3] for r in rows])
    correct = torch.tensor([r[2] for r in rows], dtype=torch.bool)
    found = group_penalty(lengths_of(*(r[1] for r in rows)), correct, where).tolist()
    for (group, length, right, valid), mine in zip(rows, found, strict=True):
        siblings = [r[1] for r in rows if r[0] == group and r[3]]
        expected = 0.0
        if valid and max(siblings) > min(siblings):
            expected = 0.5 - (length - min(siblings)) / (max(siblings) - min(siblings))
            expected = expected if right else min(0.0, expected)
        assert mine == pytest.approx(expected)


def test_penalties_are_weighted_and_added():
    config = ShapingConfig(
        overlong_buffer_len=10,
        overlong_penalty_factor=0.5,
        length_penalty_type="linear",
        length_penalty_coef=0.2,
    )
    raw = torch.tensor([1.0, 0.0, 1.0])
    where = grouping([0, 0, 0], [True, True, False])
    found = penalties(raw, lengths_of(50, 95, 95), where, config, 100)
    assert found.tolist() == pytest.approx([-0.1, -0.25 - 0.19, 0.0])


def test_penalties_come_in_the_dtype_of_the_rewards():
    config = ShapingConfig(
        overlong_buffer_len=1, length_penalty_type="linear", length_penalty_coef=1.0
    )
    found = penalties(torch.ones(1), lengths_of(2), grouping([0]), config, 4)
    assert found.dtype == torch.float32
    assert found.tolist() == [-0.5]


def test_correct_means_reward_1():
    config = ShapingConfig(length_penalty_type="group", length_penalty_coef=2.0)
    raw = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)
    found = penalties(raw, lengths_of(1, 1, 3), grouping([0] * 3), config, None)
    assert found.tolist() == [1.0, 0.0, -1.0]


@pytest.mark.parametrize(
    "config",
    [
        ShapingConfig(overlong_buffer_len=1),
        ShapingConfig(length_penalty_type="linear", length_penalty_coef=1.0),
    ],
)
def test_a_limit_is_asked_for(config):
    with pytest.raises(ConfigError, match="--rollout-max-response-len"):
        penalties(torch.ones(1), lengths_of(1), grouping([0]), config, None)


def test_by_default_nothing_is_added():
    assert not is_active(ShapingConfig())
    assert penalties(torch.ones(1), lengths_of(9), grouping([0]), ShapingConfig(), None) == 0
