import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slime_core.config.tracking import TrackingConfig
from slime_core.reports.metrics import (
    category_metrics,
    is_repetitive,
    pass_at_k,
    pass_rates,
    rollout_metrics,
    sample_metrics,
    throughput,
)
from slime_core.types import Status
from slime_testing import make_sample


def test_sample_metrics_by_hand():
    samples = [
        make_sample(4, reward=1.0, group_index=0),
        make_sample(2, reward=1.0, group_index=0, status=Status.TRUNCATED),
        make_sample(3, reward=0.0, group_index=1, loss_mask=[1, 0, 0]),
        make_sample(9, reward=None, group_index=1, status=Status.FAILED, response="ab" * 5000),
    ]
    assert sample_metrics(samples) == pytest.approx(
        {
            "response_len/mean": 4.0,
            "response_len/median": 3.0,
            "response_len/max": 9.0,
            "response_len/min": 1.0,
            "truncated_ratio": 0.25,
            "failed_ratio": 0.25,
            "repetition_frac": 0.25,
            "raw_reward": 2 / 3,
            "zero_std/count_1.0": 1.0,
        }
    )


def test_flags_add_to_what_a_rollout_reports_and_unjudged_samples_have_no_rewards():
    samples = [make_sample(n, reward=r, group_index=0) for n, r in ((4, 1.0), (6, 0.0))]
    quiet, loud = TrackingConfig(), TrackingConfig(log_passrate=True, log_correct_samples=True)
    plain = rollout_metrics(samples, quiet)
    assert plain == sample_metrics(samples)
    added = {name: x for name, x in rollout_metrics(samples, loud).items() if name not in plain}
    lengths = {f"correct_len/{name}": 4.0 for name in ("mean", "median", "max", "min")}
    assert added == {"pass@1": 0.5, "pass@2": 1.0, **lengths}
    unjudged = rollout_metrics(samples, quiet, judged=False)
    assert unjudged == {name: x for name, x in plain.items() if name != "raw_reward"}


def test_text_that_is_no_unicode_can_still_repeat_itself():
    assert is_repetitive("\ud83d" * 5000)
    assert not is_repetitive("half an emoji: \ud83d")


def test_a_reward_just_below_zero_is_counted_as_zero():
    samples = [make_sample(reward=-0.01, group_index=0) for _ in range(2)]
    counts = [name for name in sample_metrics(samples) if "zero_std" in name]
    assert counts == ["zero_std/count_0.0"]


def test_nothing_gives_nothing():
    assert sample_metrics([]) == {}
    assert pass_rates([]) == {}


@given(st.integers(1, 7), st.data())
def test_pass_at_k_counts_subsets(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_rates_are_means_over_groups():
    samples = [make_sample(reward=r, group_index=g) for g, r in [(0, 1.0), (0, 0.0), (1, 0.0)]]
    samples.append(make_sample(reward=None, status=Status.FAILED, group_index=1))
    assert pass_rates(samples) == {"pass@1": 0.25, "pass@2": 0.5}


def test_the_segments_of_one_execution_count_once():
    segments = [make_sample(reward=1.0, group_index=0, rollout_id=0) for _ in range(4)]
    others = [make_sample(reward=r, group_index=0, rollout_id=1) for r in (1.0, 0.0)]
    alone = make_sample(reward=0.0, group_index=1, rollout_id=2)
    again = make_sample(reward=0.0, group_index=1, rollout_id=3)
    samples = [*segments, *others, alone, again]
    found = sample_metrics(samples)
    assert found["raw_reward"] == pytest.approx((1.0 + 0.5 + 0.0 + 0.0) / 4)
    assert found["zero_std/count_0.0"] == 1.0
    assert "zero_std/count_1.0" not in found
    # of the first group one of two executions is right as a whole, of the second none
    assert pass_rates(samples) == {"pass@1": 0.25, "pass@2": 0.5}


def test_repetition_needs_length():
    assert not is_repetitive("aaaa")
    assert not is_repetitive("".join(map(str, range(3000))))
    assert is_repetitive("x" * 5000)


def test_categories_and_throughput():
    samples = [make_sample(4, reward={"kind": k}) for k in ("a", "b", "a")] + [make_sample(8)]
    assert category_metrics(samples, "kind") == {"error_cat/a": 0.5, "error_cat/b": 0.25}
    speed = throughput(samples, 2.0, num_gpus=5)
    assert speed["tokens_per_gpu_per_sec"] == 2.0
    assert speed["longest_sample_tokens_per_sec"] == 4.0
