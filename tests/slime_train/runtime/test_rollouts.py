from types import SimpleNamespace

import pytest
from slime_core.heartbeat import WorkerError
from slime_train.runtime import rollouts
from slime_train.runtime.rollouts import RolloutProcess


def test_a_lost_rollout_worker_is_noticed_while_its_engines_are_asked(monkeypatch):
    def lost():
        raise WorkerError("rollout worker does not answer")

    def gather(calls, timeout_s, while_waiting):
        while_waiting()
        raise AssertionError("nobody looks after the rollout worker meanwhile")

    monkeypatch.setattr(rollouts, "gather", gather)
    process = SimpleNamespace(_on_wait=lost, _remote=SimpleNamespace(beside=lambda *args: args))
    with pytest.raises(WorkerError, match="does not answer"):
        RolloutProcess.fleet(process, "status")  # pyright: ignore[reportArgumentType]
