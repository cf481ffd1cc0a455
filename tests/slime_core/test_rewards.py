import pytest
from slime_core.config.algorithm import AdvantageConfig
from slime_core.errors import ConfigError, SampleError
from slime_core.rewards import grouping_of, normalize, raw_rewards, rollout_ids
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


def test_a_reward_that_is_a_number_is_taken_though_a_key_is_named():
    config = AdvantageConfig(normalize_grpo_std=False)
    assert normalize([group(0, [1.0, 3.0])], config, reward_key="score") == [-1.0, 1.0]
    assert raw_rewards(group(0, [1.0]).samples, config, reward_key="score") == [1.0]


def test_a_finished_sample_needs_a_finite_reward():
    with pytest.raises(SampleError, match="no `reward`"):
        normalize([group(0, [None])], AdvantageConfig())
    with pytest.raises(SampleError, match="not a finite number"):
        normalize([group(0, [float("nan")])], AdvantageConfig())


@pytest.mark.parametrize("status", [Status.FAILED, Status.ABORTED])
@pytest.mark.parametrize("name", ["grpo", "rloo", "maxrl", "reinforce_plus_plus_baseline", "ppo"])
def test_a_broken_sample_takes_no_part_even_with_a_reward(name, status):
    config = AdvantageConfig(advantage_estimator=name)
    broken = make_sample(reward=100.0, status=status)
    alone = normalize([group(0, [1.0, 3.0])], config)
    samples = (broken, *group(0, [1.0, 3.0]).samples)
    assert normalize([SampleGroup(0, samples)], config) == [0.0, *alone]


def test_rloo_and_maxrl_by_hand():
    rewards = [group(3, [4.0, 1.0, 1.0])]
    assert normalize(rewards, AdvantageConfig(advantage_estimator="rloo")) == [3.0, -1.5, -1.5]
    assert normalize(rewards, AdvantageConfig(advantage_estimator="maxrl")) == [1.0, -0.5, -0.5]


def test_remax_compares_with_the_greedy_answer_to_the_same_prompt():
    config = AdvantageConfig(advantage_estimator="remax")
    first = SampleGroup(1, group(1, [1.0]).samples, baseline=0.25)
    second = SampleGroup(2, group(2, [1.0, 0.0]).samples, baseline=1.0)
    rest = group(1, [0.0])  # the same prompt again
    assert normalize([first, second, rest], config) == [0.75, 0.0, -1.0, -0.25]


def test_remax_without_a_baseline_is_refused_unless_nobody_needs_it():
    config = AdvantageConfig(advantage_estimator="remax")
    with pytest.raises(SampleError, match="group 5 has no `baseline`"):
        normalize([group(5, [1.0])], config)
    failed = group(5, [None], status=Status.FAILED)
    assert normalize([failed], config) == [0.0]


GDPO = AdvantageConfig(
    advantage_estimator="gdpo",
    gdpo_reward_keys=("right", "short"),
    gdpo_reward_weights=(1.0, 2.0),
    normalize_grpo_std=False,
)


def test_gdpo_centres_each_reward_and_adds_them_by_weight():
    rewards = [{"right": 1.0, "short": 0.0}, {"right": 0.0, "short": 3.0, "other": "text"}]
    assert normalize([group(0, rewards)], GDPO) == [0.5 - 3.0, -0.5 + 3.0]
    assert normalize([group(0, rewards)], GDPO, reward_key="right") == [-2.5, 2.5]


def test_gdpo_without_weights_counts_every_reward_once():
    config = AdvantageConfig(advantage_estimator="gdpo", gdpo_reward_keys=("right", "short"))
    # each is 1 / sqrt(2) above or below its mean, in units of its spread
    against = [{"right": 1.0, "short": 0.0}, {"right": 0.0, "short": 9.0}]
    assert normalize([group(0, against)], config) == pytest.approx([0.0, 0.0], abs=1e-5)
    along = [{"right": 1.0, "short": 9.0}, {"right": 0.0, "short": 0.0}]
    assert normalize([group(0, along)], config) == pytest.approx([2**0.5, -(2**0.5)], rel=1e-5)
    assert raw_rewards(group(0, along).samples, config) == [10.0, 0.0]


def test_gdpo_names_the_sample_and_the_key_it_misses():
    rewards = [make_sample(index=4, reward={"right": 1.0})]
    with pytest.raises(SampleError, match=r"sample 4: .* asks for 'short'"):
        normalize([SampleGroup(0, tuple(rewards))], GDPO)
    with pytest.raises(ConfigError, match="--gdpo-reward-keys"):
        normalize([group(0, [1.0])], AdvantageConfig(advantage_estimator="gdpo"))


def test_gdpo_keeps_failed_samples_out():
    failed = make_sample(reward={"error": "timeout"}, status=Status.FAILED)
    samples = group(0, [{"right": 1.0, "short": 0.0}, {"right": 0.0, "short": 0.0}]).samples
    assert normalize([SampleGroup(0, (*samples, failed))], GDPO) == [0.5, -0.5, 0.0]


def test_without_normalisation_rewards_stay_as_they_are():
    for name in ("grpo", "rloo", "remax", "maxrl"):
        config = AdvantageConfig(advantage_estimator=name, normalize_rewards=False)
        assert normalize([group(0, [-1.0, 3.0])], config) == [-1.0, 3.0]
    config = AdvantageConfig(
        advantage_estimator="gdpo",
        gdpo_reward_keys=("a", "b"),
        gdpo_reward_weights=(1.0, 0.5),
        normalize_rewards=False,
    )
    assert normalize([group(0, [{"a": 1.0, "b": 4.0}])], config) == [3.0]


def test_penalties_come_before_the_comparison():
    config = AdvantageConfig(normalize_grpo_std=False)
    assert normalize([group(0, [1.0, 1.0])], config, penalties=[0.0, -1.0]) == [0.5, -0.5]
    config = AdvantageConfig(advantage_estimator="ppo")
    assert normalize([group(0, [1.0, 1.0])], config, penalties=[0.0, -1.0]) == [1.0, 0.0]


def test_penalties_and_baselines_are_as_exact_as_rewards():
    config = AdvantageConfig(advantage_estimator="ppo")
    assert normalize([group(0, [0.1])], config, penalties=[-0.1]) == [0.0]
    config = AdvantageConfig(advantage_estimator="remax")
    alone = SampleGroup(0, group(0, [0.1]).samples, baseline=0.1)
    assert normalize([alone], config) == [0.0]


def test_with_gdpo_penalties_change_the_reward_of_the_key():
    rewards = [group(0, [{"right": 1.0, "short": 0.0}] * 2)]
    found = normalize(rewards, GDPO, reward_key="short", penalties=[0.0, -1.0])
    assert found == [1.0, -1.0]
    with pytest.raises(ConfigError, match="--reward-key, which is 'other'"):
        normalize(rewards, GDPO, reward_key="other", penalties=[0.0, -1.0])


def test_raw_rewards_are_one_number_each():
    samples = group(0, [{"right": 1.0, "short": 3.0}, {"right": 0.0, "short": 1.0}]).samples
    failed = make_sample(reward=None, status=Status.FAILED)
    assert raw_rewards(samples, GDPO, reward_key="right") == [1.0, 0.0]
    assert raw_rewards((*samples, failed), GDPO) == [7.0, 2.0, 0.0]
    assert raw_rewards([failed, make_sample(reward=2.0)], AdvantageConfig()) == [0.0, 2.0]


def test_samples_without_an_execution_are_executions_of_their_own():
    samples = [make_sample(rollout_id=i) for i in (None, 0, 2, None, 0)]
    assert rollout_ids(samples) == [1, 0, 2, 3, 0]


def test_equal_execution_ids_in_two_groups_are_two_executions():
    samples = [make_sample(reward=r, rollout_id=i) for r, i in [(1.0, 0), (0.0, 1)]]
    config = AdvantageConfig(normalize_grpo_std=False)
    both = [SampleGroup(7, tuple(samples)), SampleGroup(8, tuple(samples))]
    assert normalize(both, config) == [0.5, -0.5] * 2


def test_no_groups_have_no_rewards():
    assert normalize([], AdvantageConfig()) == []
    assert grouping_of([]).group_ids.numel() == 0
