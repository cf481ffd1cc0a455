import asyncio
import logging

import pytest
from slime_core.scores import is_ungraded
from slime_core.types import Status
from slime_rewards.config import RewardConfig
from slime_rewards.policy import GradingError
from slime_rewards.select import make_reward
from slime_testing import make_sample

FLAKY = """
import collections

calls = collections.Counter()


def custom_rm(args, sample):
    calls[sample.response] += 1
    if sample.response == "never" or calls[sample.response] < 3 and sample.response == "third":
        raise ValueError("not yet\\nnot today")
    return 0.5
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "rm.py").write_text(FLAKY)
    return f"{tmp_path}/rm.py:custom_rm"


def graded(*samples, rounds=1, **config):
    """Metrics of a rollout in which ``samples`` are scored."""
    rewards = make_reward(RewardConfig(**config), {})
    try:
        for _ in range(rounds):
            asyncio.run(rewards(samples))
        return rewards.metrics()
    finally:
        rewards.close()


def answered(response, **changes):
    return make_sample(reward=None, response=response, **changes)


def test_a_sample_is_dropped_and_counted(spec):
    bad, good = answered("never"), answered("good")
    metrics = graded(bad, good, custom_rm_path=spec)
    assert (bad.status, bad.reward, good.reward) == (Status.FAILED, None, 0.5)
    assert bad.metadata["error"] == "not today"
    assert bad.metadata["reward_outcome"] == "error"
    assert {name: metrics[f"rollout/reward_{name}"] for name in ("values", "errors")} == {
        "values": 1.0,
        "errors": 1.0,
    }
    assert metrics["rollout/reward_retries"] == metrics["rollout/reward_abstentions"] == 0.0
    assert 0 <= metrics["rollout/reward_s"] <= metrics["rollout/reward_s_max"]


def test_a_group_is_dropped_with_what_already_had_a_reward(spec):
    samples = [answered("never"), answered("good"), make_sample(reward=1.0)]
    graded(*samples, custom_rm_path=spec, reward_failure_policy="drop-group")
    assert [s.status for s in samples] == [Status.FAILED] * 3
    assert [s.reward for s in samples] == [None] * 3
    assert is_ungraded(samples)
    assert samples[1].metadata["error"].endswith("could not be graded: not today")


def test_a_group_of_which_something_is_left_is_trained_on(spec):
    samples = [answered("never"), answered("good")]
    graded(*samples, custom_rm_path=spec)
    assert not is_ungraded(samples)


def test_samples_are_graded_again_and_then_dropped(spec):
    never, third = answered("never"), answered("third")
    metrics = graded(never, third, custom_rm_path=spec, reward_failure_policy="retry")
    assert (never.status, third.reward) == (Status.FAILED, 0.5)
    assert metrics["rollout/reward_retries"] == 4.0
    assert metrics["rollout/reward_values"] == metrics["rollout/reward_errors"] == 1.0


@pytest.mark.parametrize(
    ("keys", "reward"),
    [({}, -1.0), ({"reward_key": "a", "eval_reward_key": "b"}, {"a": -1.0, "b": -1.0})],
)
def test_a_score_can_stand_for_a_missing_reward(spec, keys, reward):
    bad = answered("never", status=Status.COMPLETED)
    policy = {"reward_failure_policy": "score", "reward_failure_score": -1.0}
    metrics = graded(bad, custom_rm_path=spec, **policy, **keys)
    assert (bad.reward, bad.status) == (reward, Status.COMPLETED)
    assert bad.metadata["reward_outcome"] == "error"
    assert metrics["rollout/reward_errors"] == 1.0


def test_too_many_errors_stop_the_run_with_the_first_traceback(spec):
    samples = [answered("never") for _ in range(3)]
    with pytest.raises(GradingError, match="more than --reward-max-failures 2") as caught:
        graded(*samples, custom_rm_path=spec, reward_max_failures=2)
    assert "rm.py" in str(caught.value)
    assert 'raise ValueError("not yet' in str(caught.value)


def test_each_rollout_may_have_some_errors(spec):
    rewards = make_reward(RewardConfig(custom_rm_path=spec, reward_max_failures=2), {})
    for _ in range(3):
        asyncio.run(rewards([answered("never"), answered("never")]))
        assert rewards.metrics("eval/grading/")["eval/grading/reward_errors"] == 2.0
    assert rewards.metrics() == {}
    rewards.close()


LATE = """
import time


def grade(response, label, metadata):
    if response == "slow":
        time.sleep(60)
    return 1
"""


@pytest.fixture
def late(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    return {"custom_rm_path": f"{tmp_path}/late.py:grade", "reward_timeout_s": 0.2}


def test_late_answers_stop_a_run_only_where_nothing_is_graded(late):
    slow = [answered("slow") for _ in range(3)]
    metrics = graded(answered("quick"), *slow, reward_max_failures=2, **late)
    assert metrics["rollout/reward_abstentions"] == 3.0
    assert slow[0].metadata["reward_outcome"] == "abstention"
    slow = [answered("slow") for _ in range(3)]
    with pytest.raises(GradingError, match=r"not decided within 0\.2 s"):
        graded(*slow, reward_max_failures=2, **late)


def test_a_problem_is_logged_once(spec, caplog):
    with caplog.at_level(logging.WARNING):
        graded(*(answered("never") for _ in range(5)), custom_rm_path=spec)
    assert caplog.text.count("Traceback") == 1
