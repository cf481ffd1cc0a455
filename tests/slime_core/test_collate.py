import pickle

import pytest
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig
from slime_core.errors import SampleError
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
