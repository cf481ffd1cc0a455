import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core.collate import age_metrics, collate, fresh, num_stale_tokens
from slime_core.config.algorithm import AdvantageConfig, ShapingConfig
from slime_core.errors import ConfigError, SampleError
from slime_core.types import SampleGroup, Status
from slime_testing import make_sample


def freeze(*samples, **options):
    return collate(
        [SampleGroup(4, samples)],
        **{"reward_key": None, "advantage": AdvantageConfig(), **options},
    )


def test_rows_by_hand():
    batch = freeze(
        make_sample(2, reward=1.0, index=8, rollout_id=3, status=Status.TRUNCATED),
        make_sample(1, reward=0.0, index=9, loss_mask=[0]),
    )
    assert batch.tokens.values.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.tokens.lengths.tolist() == [4, 3]
    assert batch.response_lengths.tolist() == [2, 1]
    assert batch.loss_mask.values.tolist() == [1.0, 1.0, 0.0]
    assert batch.raw_rewards.tolist() == [1.0, 0.0]
    assert batch.rewards.tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], rel=1e-5)
    assert batch.truncated.tolist() == [True, False]
    assert batch.sample_ids.tolist() == [8, 9]
    assert batch.group_ids.tolist() == [4, 4]
    assert batch.rollout_ids.tolist() == [3, 0]
    assert batch.rollout_log_probs.values.tolist() == [-0.5] * 3


def test_segments_share_the_token_count_of_their_rollout():
    batch = freeze(make_sample(2, rollout_id=1), make_sample(3, rollout_id=1), make_sample(4))
    assert batch.rollout_token_counts.tolist() == [5.0, 5.0, 4.0]
    assert batch.rollout_ids.tolist() == [1, 1, 0]


def test_failed_and_removed_samples_stay_but_are_not_trained_on():
    batch = freeze(
        make_sample(2, remove_sample=True),
        make_sample(1, status=Status.FAILED, reward=None, rollout_log_probs=None),
        make_sample(0, tokens=[], rollout_log_probs=None, status=Status.FAILED, reward=None),
        make_sample(1),
    )
    assert batch.loss_mask.values.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert batch.rollout_token_counts.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert batch.rollout_log_probs.values.tolist() == [-0.5, -0.5, 0.0, -0.5]
    assert batch.tokens.lengths.tolist() == [4, 3, 1, 3]


@pytest.mark.parametrize("odd", [-1, 2, 0.5, float("nan")])
def test_a_loss_mask_that_weighs_tokens_is_refused(odd):
    sample = make_sample(2, index=7)
    sample.loss_mask = [1, odd]
    with pytest.raises(SampleError, match=f"sample 7: `loss_mask` has the entry {odd}"):
        freeze(make_sample(), sample)


def test_a_loss_mask_may_be_of_booleans():
    assert freeze(make_sample(2, loss_mask=[True, False])).loss_mask.values.tolist() == [1.0, 0.0]


def test_rollouts_numbered_anew_in_every_group_are_refused():
    groups = [
        SampleGroup(index, (make_sample(rollout_id=0), make_sample(rollout_id=1)))
        for index in (4, 5)
    ]
    with pytest.raises(SampleError, match="`rollout_id` 0 occurs in the groups 4 and 5"):
        collate(groups, reward_key=None, advantage=AdvantageConfig())


def test_different_prompts_under_one_number_are_refused_and_pieces_of_a_group_are_not():
    first, second = make_sample(reward=1.0), make_sample(reward=0.0)
    pieces = [SampleGroup(4, (first,)), SampleGroup(4, (second,))]
    config = AdvantageConfig(normalize_grpo_std=False)
    assert collate(pieces, reward_key=None, advantage=config).rewards.tolist() == [0.5, -0.5]
    second.prompt = "3+3="
    with pytest.raises(SampleError, match="two groups have the `group_index` 4 and different pro"):
        collate(pieces, reward_key=None, advantage=config)


def test_a_missing_field_names_the_sample():
    with pytest.raises(SampleError, match="sample 7 has no `rollout_log_probs`"):
        freeze(make_sample(), make_sample(index=7, rollout_log_probs=None))


def test_a_field_nobody_has_is_none():
    assert freeze(make_sample(rollout_log_probs=None)).rollout_log_probs is None


def test_a_response_without_a_prompt_is_refused():
    with pytest.raises(SampleError, match="at least one prompt token"):
        freeze(make_sample(2, tokens=[1, 2]))


def test_the_rewards_can_be_shaped_by_a_hook():
    def shape(samples):
        return [s.reward for s in samples], [s.reward * 10 for s in samples]

    batch = freeze(make_sample(reward=2.0), post_process=shape)
    assert (batch.raw_rewards.tolist(), batch.rewards.tolist()) == ([2.0], [20.0])


def test_a_batch_survives_pickling_and_selection():
    batch = freeze(make_sample(2, index=0), make_sample(3, index=1), make_sample(1, index=2))
    part = pickle.loads(pickle.dumps(batch)).select([2, 0])
    assert part.sample_ids.tolist() == [2, 0]
    assert part.tokens.lengths.tolist() == [3, 4]


NO_STD = AdvantageConfig(normalize_grpo_std=False)


@pytest.mark.parametrize("status", [Status.FAILED, Status.ABORTED])
def test_broken_samples_are_counted_but_neither_trained_on_nor_compared_with(status):
    batch = freeze(
        make_sample(2, reward=1.0, rollout_id=5),
        make_sample(2, reward=9.0, status=status, rollout_id=6),
        make_sample(2, reward=0.0, rollout_id=7),
        advantage=NO_STD,
    )
    assert batch.loss_mask.values.tolist() == [1, 1, 0, 0, 1, 1]
    assert batch.rewards.tolist() == [0.5, 0.0, -0.5]
    assert batch.rollout_ids.tolist() == [5, 6, 7]
    assert batch.rollout_token_counts.tolist() == [2.0, 0.0, 2.0]


def test_the_first_sample_does_not_decide_which_fields_there_are():
    failed = make_sample(2, status=Status.FAILED, reward=None, rollout_log_probs=None)
    finished = make_sample(1, teacher_log_probs=[-2.0])
    for samples, expected in (
        ((failed, finished), [0.0, 0.0, -2.0]),
        ((finished, failed), [-2.0, 0.0, 0.0]),
    ):
        batch = freeze(*samples)
        assert batch.teacher_log_probs.values.tolist() == expected
        assert batch.rollout_log_probs.values.numel() == 3


@pytest.mark.parametrize("name", ["rollout_log_probs", "teacher_log_probs"])
def test_log_probs_that_are_not_finite_are_refused_where_they_are_trained_on(name):
    def run(mask):
        return freeze(make_sample(2, index=6, loss_mask=mask, **{name: [-1.0, float("-inf")]}))

    with pytest.raises(SampleError, match=f"sample 6: `{name}` is -inf at response token 1"):
        run([1, 1])
    run([1, 0])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        ([-1.0], r"\[-1.0\]"),
        (np.zeros(2), r"array\(\[0., 0.\]\)"),
        (torch.zeros(2), r"tensor\(\[0., 0.\]\)"),
    ],
)
def test_log_probs_that_are_no_numbers_are_named(value, shown):
    sample: Any = make_sample(2)
    sample.rollout_log_probs = [-1.0, value]
    with pytest.raises(SampleError, match=f"`rollout_log_probs` holds {shown}: give one number"):
        freeze(sample)


OVERLONG = ShapingConfig(overlong_buffer_len=4, overlong_penalty_factor=2.0)


def test_shaping_changes_what_is_learnt_from_and_not_what_was_given():
    # over 10 - 4 = 6 tokens: 0, 2 of 4, all 4
    samples = [make_sample(n, reward=1.0) for n in (6, 8, 10)]
    batch = freeze(*samples, advantage=NO_STD, shaping=OVERLONG, max_response_len=10)
    assert batch.raw_rewards.tolist() == [1.0, 1.0, 1.0]
    assert batch.rewards.tolist() == [1.0, 0.0, -1.0]


def test_shaping_reaches_estimators_that_compare_with_nothing():
    config = AdvantageConfig(advantage_estimator="ppo")
    batch = freeze(make_sample(8), advantage=config, shaping=OVERLONG, max_response_len=10)
    assert batch.rewards.tolist() == [0.0]


def test_shaping_a_dictionary_changes_the_reward_of_the_key():
    samples = [make_sample(n, reward={"score": 1.0, "other": 5.0}) for n in (6, 10)]
    options = {"shaping": OVERLONG, "max_response_len": 10, "reward_key": "score"}
    batch = freeze(*samples, advantage=NO_STD, **options)
    assert batch.raw_rewards.tolist() == [1.0, 1.0]
    assert batch.rewards.tolist() == [1.0, -1.0]
    gdpo = AdvantageConfig(
        advantage_estimator="gdpo",
        gdpo_reward_keys=("other", "score"),
        gdpo_reward_weights=(1.0, 3.0),
        normalize_grpo_std=False,
    )
    assert freeze(*samples, advantage=gdpo, **options).rewards.tolist() == [3.0, -3.0]


def test_lengths_are_compared_within_the_prompt():
    group = ShapingConfig(length_penalty_type="group", length_penalty_coef=1.0)
    groups = [
        SampleGroup(0, (make_sample(1, reward=1.0), make_sample(3, reward=1.0))),
        SampleGroup(1, (make_sample(7, reward=1.0), make_sample(9, reward=0.0))),
    ]
    config = AdvantageConfig(advantage_estimator="ppo")
    batch = collate(groups, reward_key=None, advantage=config, shaping=group)
    assert batch.rewards.tolist() == [1.5, 0.5, 1.5, -0.5]


def test_a_failed_sample_is_not_penalised_and_its_length_not_compared_with():
    group = ShapingConfig(length_penalty_type="group", length_penalty_coef=1.0)
    failed = make_sample(50, reward=None, status=Status.FAILED)
    config = AdvantageConfig(advantage_estimator="ppo")
    batch = freeze(make_sample(1), make_sample(3), failed, advantage=config, shaping=group)
    assert batch.rewards.tolist() == [1.5, 0.5, 0.0]


def test_shaping_beside_rewards_of_a_hook_is_refused():
    def shape(samples):
        return [0.0], [0.0]

    with pytest.raises(ConfigError, match="--custom-reward-post-process-path"):
        freeze(make_sample(), post_process=shape, shaping=OVERLONG, max_response_len=10)
    freeze(make_sample(), post_process=shape, shaping=ShapingConfig())


def test_a_relative_penalty_needs_the_limit():
    with pytest.raises(ConfigError, match="--rollout-max-response-len"):
        freeze(make_sample(), shaping=OVERLONG)


def test_stale_tokens_are_masked_before_denominators_are_counted():
    batch = freeze(
        make_sample(4, rollout_id=1, token_versions=[3, 4, 5, -1], loss_mask=[1, 1, 1, 0]),
        make_sample(2, rollout_id=1, token_versions=[2, 3]),
        make_sample(1, token_versions=[5]),
        version=5,
        max_token_staleness=1,
    )
    assert batch.loss_mask.values.tolist() == [0, 1, 1, 0, 0, 0, 1]
    assert batch.rollout_token_counts.tolist() == [2.0, 2.0, 1.0]


def test_without_a_limit_nothing_is_stale():
    samples = [make_sample(2, token_versions=[0, 1])]
    assert freeze(*samples, version=100).loss_mask.values.tolist() == [1, 1]
    assert num_stale_tokens(samples, version=100, max_token_staleness=None) == 0


@pytest.mark.parametrize(
    ("versions", "expected"),
    [(["3"], [0, 0]), (["4"], [1, 1]), (["3", "5"], [1, 1]), ([], [1, 1]), (["default"], [1, 1])],
)
def test_without_versions_of_tokens_one_version_of_the_sample_is_used(versions, expected):
    assert fresh(make_sample(2, weight_versions=versions), oldest=4) == expected


def test_versions_of_tokens_come_before_those_of_the_sample():
    sample = make_sample(3, weight_versions=["1"], token_versions=[4, -1, 3])
    assert fresh(sample, oldest=4) == [1, 1, 0]


def test_only_tokens_that_would_be_trained_on_are_reported_as_stale():
    samples = [
        make_sample(3, token_versions=[0, 0, 5], loss_mask=[0, 1, 1]),
        make_sample(2, token_versions=[0, 0], status=Status.FAILED),
        make_sample(2, weight_versions=["1"]),
    ]
    assert num_stale_tokens(samples, version=5, max_token_staleness=3) == 3


@given(
    st.lists(
        st.tuples(
            st.integers(0, 6),
            st.integers(0, 2),
            st.sampled_from([Status.COMPLETED, Status.TRUNCATED, Status.FAILED, Status.ABORTED]),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 4),
)
@settings(max_examples=80, deadline=None)
def test_every_sample_is_a_row_and_counts_follow_the_mask(rows, staleness):
    samples = [
        make_sample(
            n,
            rollout_id=rollout,
            status=status,
            reward=None if bare and status in (Status.FAILED, Status.ABORTED) else float(i),
            token_versions=[t % 5 for t in range(n)],
        )
        for i, (n, rollout, status, bare) in enumerate(rows)
    ]
    batch = freeze(*samples, version=4, max_token_staleness=staleness)
    assert batch.num_samples == len(rows)
    masks = batch.loss_mask.split()
    for row, (_, rollout, status, _) in enumerate(rows):
        siblings = [m.sum() for m, r in zip(masks, rows, strict=True) if r[1] == rollout]
        assert batch.rollout_token_counts[row] == sum(siblings)
        if status in (Status.FAILED, Status.ABORTED):
            assert masks[row].sum() == 0
            assert batch.rewards[row] == 0
        else:
            assert masks[row].tolist() == [
                float(t % 5 >= 4 - staleness) for t in range(len(masks[row]))
            ]


def test_ages_count_tokens_that_would_be_trained_on():
    samples = [
        make_sample(3, index=0, reward=1.0, token_versions=[2, 4, -1]),
        make_sample(2, index=1, reward=1.0, token_versions=[5, 1], loss_mask=[1, 0]),
        make_sample(1, index=2, reward=1.0, token_versions=[0], status=Status.FAILED),
    ]
    found = age_metrics(samples, version=5, max_token_staleness=2, num_wasted=7.0)
    assert found == {
        "rollout/staleness_mean": (3 + 1 + 0) / 3,
        "rollout/staleness_max": 3,
        "rollout/num_stale_tokens": 1,
        "rollout/num_wasted_tokens": 8,
    }
    unbounded = age_metrics(samples, version=5, max_token_staleness=None)
    assert set(unbounded) == {"rollout/staleness_mean", "rollout/staleness_max"}
