import asyncio
import time

import pytest
from slime_core.types import Status
from slime_rewards import remote
from slime_rewards.config import RewardConfig
from slime_rewards.select import make_reward
from slime_testing import make_sample
from slime_testing.json_server import json_server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(
        remote.tenacity, "wait_exponential", lambda **_: remote.tenacity.wait_none()
    )
    monkeypatch.setattr(remote.tenacity, "wait_random", lambda *_: remote.tenacity.wait_none())


def scored(url, *samples, **config):
    rewards = make_reward(RewardConfig(rm_type="remote_rm", rm_url=url, **config), {})
    try:
        asyncio.run(rewards(samples))
    finally:
        rewards.close()
    return [sample.reward for sample in samples]


def answered(response, **changes):
    return make_sample(reward=None, prompt="p", response=response, label="4", **changes)


def test_a_server_gives_numbers_and_dictionaries():
    asked = []

    def reply(path, body):
        asked.append((path, body))
        return 200, 0.5 if body["response"] == "a" else {"score": 1.0, "why": "good"}

    with json_server(reply) as url:
        rewards = scored(f"{url}/rm", answered("a"), answered("b"))
    assert rewards == [0.5, {"score": 1.0, "why": "good"}]
    assert ("/rm", {"prompt": "p", "response": "a", "label": "4"}) in asked


def test_many_samples_are_asked_about_at_once():
    def reply(path, body):
        time.sleep(0.2)
        return 200, float(body["response"])

    with json_server(reply) as url:
        start = time.monotonic()
        rewards = scored(url, *(answered(str(i)) for i in range(32)))
    assert rewards == [float(i) for i in range(32)]
    assert time.monotonic() - start < 4


def test_failures_of_the_server_pass_and_refusals_do_not():
    seen = []

    def reply(path, body):
        seen.append(body["response"])
        if body["response"] == "bad":
            return 422, "no"
        return (503, "busy") if len(seen) < 4 else (200, 1.0)

    with json_server(reply) as url:
        assert scored(url, answered("a")) == [1.0]
        assert len(seen) == 4
        bad = answered("bad")
        assert scored(url, bad) == [None]
    assert len(seen) == 5
    assert "422" in bad.metadata["error"]


def test_a_server_that_hangs_or_is_gone_is_no_zero():
    def reply(path, body):
        time.sleep(1)
        return 200, 1.0

    with json_server(reply) as url:
        late = answered("a")
        assert scored(url, late, reward_call_timeout_s=0.05) == [None]
    gone = answered("a")
    assert scored(url, gone) == [None]
    assert late.metadata["reward_outcome"] == "abstention"
    assert (gone.status, gone.metadata["reward_outcome"]) == (Status.FAILED, "error")


@pytest.mark.parametrize("answer", ['"good"', "NaN", "null", "[1]"])
def test_an_answer_that_is_no_reward_is_an_error(answer):
    sample = answered("a")
    with json_server(lambda path, body: (200, answer)) as url:
        assert scored(url, sample) == [None]
    assert "a grader returned" in sample.metadata["error"]
