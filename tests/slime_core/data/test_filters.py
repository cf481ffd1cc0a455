from types import SimpleNamespace

from slime_core.data.filters import (
    check_reward_nonzero_std,
    check_reward_nonzero_std_with_fallback,
)
from slime_core.types import Status
from slime_testing import make_sample

ARGS = SimpleNamespace(reward_key=None)


def test_groups_of_equal_rewards_are_dropped_with_their_reward():
    verdict = check_reward_nonzero_std(ARGS, [make_sample(reward=0.1)] * 3)
    assert (verdict.keep, verdict.reason) == (False, "zero_std_0.1")
    assert check_reward_nonzero_std(ARGS, [make_sample(reward=0.0), make_sample()]).keep


def test_segments_and_failures_are_understood():
    failed = make_sample(reward=None, status=Status.FAILED)
    assert check_reward_nonzero_std(ARGS, [[make_sample(reward=0.0)], [make_sample(), failed]]).keep
    assert check_reward_nonzero_std(ARGS, [failed]).reason == "no_reward"


def test_the_fallback_says_so():
    verdict = check_reward_nonzero_std_with_fallback(ARGS, [make_sample()])
    assert (verdict.keep, verdict.keep_when_insufficient) == (False, True)
