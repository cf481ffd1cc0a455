import copy
import pickle

import pytest
from slime_core.config.algorithm import AdvantageConfig
from slime_core.config.flat import FlatArgs, flatten
from slime_core.config.rollout import SamplingConfig


def test_plugins_read_flag_names():
    sampling = SamplingConfig(rollout_temperature=0.7)
    args = FlatArgs(flatten(sampling, extra={"hidden_size": 8}))
    assert (args.rollout_temperature, args.hidden_size) == (0.7, 8)
    assert getattr(args, "sglang_enable_x", False) is False


def test_negated_flags_are_read_under_upstreams_name_too():
    args = FlatArgs(flatten(AdvantageConfig(normalize_rewards=False)))
    assert args.rewards_normalization is False
    assert args.normalize_rewards is False
    assert args.grpo_std_normalization is True


def test_unknown_names_suggest():
    with pytest.raises(AttributeError, match="did you mean 'rollout_top_p'"):
        _ = FlatArgs(flatten(SamplingConfig())).rollout_topp


def test_writes_stay_in_the_call_that_made_them():
    values = flatten(SamplingConfig(rollout_top_p=0.9))
    first, second = FlatArgs(values), FlatArgs(values)
    first.rollout_top_p = 0.5
    first.tokenizer = object()
    assert (first.rollout_top_p, second.rollout_top_p) == (0.5, 0.9)
    assert not hasattr(second, "tokenizer")


def test_travels_between_processes():
    args = FlatArgs(flatten(SamplingConfig(rollout_top_p=0.9)))
    args.note = "mine"
    for clone in (pickle.loads(pickle.dumps(args)), copy.deepcopy(args)):
        assert (clone.rollout_top_p, clone.note) == (0.9, "mine")
