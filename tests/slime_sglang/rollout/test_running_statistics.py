import time

import pytest
from slime_core.types import Sample
from slime_sglang.rollout.running_statistics import RunningStatistics


def test_nothing_is_said_of_no_samples() -> None:
    assert RunningStatistics().values() == {}


def test_means_are_of_all_samples_and_of_the_rewards_that_are_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    statistics = RunningStatistics()
    statistics.add([Sample(response_length=4, reward=1.0), Sample(response_length=2, reward=None)])
    statistics.add([Sample(response_length=6, reward={"score": 9.0}), Sample(reward=0.0)])
    now = 103.0
    assert statistics.values() == {"response_len": 3.0, "tok/s": 4.0, "reward": 0.5}
