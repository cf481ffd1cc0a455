import pytest
from slime_core.config.algorithm import AdvantageConfig
from slime_core.errors import SampleError
from slime_core.rewards import normalize
from slime_core.types import SampleGroup, Status
from slime_testing import make_sample


def group(index, rewards, **changes):
    return SampleGroup(index, tuple(make_sample(reward=r, **changes) for r in rewards))


def test_grpo_by_hand():
    # mean 0.25, unbiased deviation 0.5
    result = normalize([group(0, [1.0, 0.0, 0.0, 0.0])], AdvantageConfig())
    assert result == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)


def test_without_std_only_the_mean_goes():
    result = normalize([group(0, [3.0, 1.0])], AdvantageConfig(normalize_grpo_std=False))
    assert result == [1.0, -1.0]


def test_groups_are_found_by_index_not_by_position():
    ragged = [group(5, [1.0, 0.0, 2.0]), group(9, [10.0, 30.0])]
    config = AdvantageConfig(normalize_grpo_std=False)
    assert normalize(ragged, config) == [0.0, -1.0, 1.0, -10.0, 10.0]


def test_one_group_in_two_pieces_is_one_group():
    config = AdvantageConfig(normalize_grpo_std=False)
    assert normalize([group(5, [1.0]), group(5, [3.0])], config) == [-1.0, 1.0]


@pytest.mark.parametrize("rewards", [[0.1], [0.1, 0.1, 0.1]])
def test_groups_without_contrast_teach_nothing(rewards):
    assert normalize([group(0, rewards)], AdvantageConfig()) == [0.0] * len(rewards)


def test_a_failed_sample_does_not_move_the_baseline():
    failed = make_sample(reward=None, status=Status.FAILED)
    samples = (*group(0, [1.0, 3.0]).samples, failed)
    config = AdvantageConfig(normalize_grpo_std=False)
    assert normalize([SampleGroup(0, samples)], config) == [-1.0, 1.0, 0.0]


def test_segments_of_one_execution_count_once():
    samples = tuple(make_sample(reward=r, rollout_id=i) for r, i in [(4.0, 0), (4.0, 0), (0.0, 1)])
    config = AdvantageConfig(normalize_grpo_std=False)
    assert normalize([SampleGroup(0, samples)], config) == [2.0, 2.0, -2.0]


def test_estimators_without_a_group_baseline_keep_raw_rewards():
    config = AdvantageConfig(advantage_estimator="reinforce_plus_plus")
    assert normalize([group(0, [1.0, 0.0])], config) == [1.0, 0.0]


def test_dictionary_rewards_need_a_key():
    with pytest.raises(SampleError, match="--reward-key"):
        normalize([group(0, [{"score": 1.0}])], AdvantageConfig())
    config = AdvantageConfig(normalize_grpo_std=False)
    rewards = [{"score": 1.0}, {"score": 3.0}]
    assert normalize([group(0, rewards)], config, reward_key="score") == [-1.0, 1.0]


def test_a_finished_sample_needs_a_finite_reward():
    with pytest.raises(SampleError, match="no `reward`"):
        normalize([group(0, [None])], AdvantageConfig())
    with pytest.raises(SampleError, match="not a finite number"):
        normalize([group(0, [float("nan")])], AdvantageConfig())
