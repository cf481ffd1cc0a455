import pytest
from slime_core.collate import collate
from slime_core.config.algorithm import AdvantageConfig
from slime_core.errors import ConfigError
from slime_core.hooks.too_few_rollouts import require_a_step
from slime_core.types import SampleGroup
from slime_testing import make_sample

FLAT = {"global_batch_size": 6, "rollout_batch_size": 3, "n_samples_per_prompt": 2}
OWN = FLAT | {"data_source_path": "mine.py:Mine"}


def batch_of(*sizes, segments=1):
    """Groups of so many rollouts, each of so many segments."""
    groups, first = [], 0
    for index, size in enumerate(sizes):
        numbers = [first + i for i in range(size) for _ in range(segments)]
        groups.append(SampleGroup(index, tuple(make_sample(1, rollout_id=n) for n in numbers)))
        first += size
    return collate(groups, reward_key=None, advantage=AdvantageConfig())


def told(batch, flat):
    with pytest.raises(ConfigError) as caught:
        require_a_step(batch, flat)
    return str(caught.value)


def test_groups_of_the_wrong_size_are_told_with_what_to_do():
    message = told(batch_of(1, 1, 1), OWN)
    assert "holds 3 rollouts, not enough" in message
    assert "3 groups of 1, instead of 3 groups of 2 (--rollout-batch-size, --n-sam" in message
    assert message.endswith(
        "Look at --data-source-path mine.py:Mine: make its groups of 2 samples, "
        "args.n_samples_per_prompt, or give --n-samples-per-prompt 1"
    )


def test_too_few_groups_are_told_with_everything_that_may_have_lost_them():
    message = told(batch_of(2, 2), OWN | {"rollout_function_path": "other.make"})
    assert ": 2 groups of 2, instead of 3 groups of 2" in message
    assert message.endswith(
        "Look at --data-source-path mine.py:Mine, --rollout-function-path other.make: "
        "return 3 groups, args.rollout_batch_size"
    )


def test_groups_of_several_sizes_that_share_rollouts_are_counted_by_these():
    message = told(batch_of(1, 3, segments=2), OWN)
    assert "holds 4 rollouts (of 8 samples, some share a rollout_id), not enough" in message
    assert ": 1 group of 1, 1 group of 3, instead of" in message
    assert message.endswith(
        "make its groups of 2 samples, args.n_samples_per_prompt; "
        "return 3 groups, args.rollout_batch_size"
    )


@pytest.mark.parametrize("sizes", [(6,), (1, 2, 3), (5, 4)])
def test_groups_of_any_size_will_do_if_they_make_a_step(sizes):
    require_a_step(batch_of(*sizes), OWN)


def test_what_the_user_did_not_make_is_not_blamed_on_the_user():
    require_a_step(batch_of(1), FLAT)
    require_a_step(batch_of(2, 2, 2), OWN | {"global_batch_size": 12})
