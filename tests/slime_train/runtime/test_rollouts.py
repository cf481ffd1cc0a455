from types import SimpleNamespace

import pytest
from slime_core.errors import DataError
from slime_core.processes.heartbeat import WorkerError
from slime_sglang import client
from slime_sglang.fleet.health import HealthSpec
from slime_train.runtime import rollouts
from slime_train.runtime.rollouts import RolloutProcess


def process():
    made = RolloutProcess.__new__(RolloutProcess)  # without a process
    made.tend = lambda: None
    made._timeout_s, made._rollout_s, made._begun = 7.0, 5.0, []
    made._on_progress = lambda progress: None
    return made


@pytest.mark.parametrize(
    ("wait", "words"),
    [
        (lambda made: made.begin(3)(), "not done within 5.0 s (--rollout-timeout-s)"),
        (lambda made: made.evaluate(3), "not done within 5.0 s (--rollout-timeout-s)"),
        (lambda made: made.stop(), "not done within 7.0 s"),
    ],
)
def test_a_rollout_that_does_not_end_is_a_hang_that_names_its_flag(monkeypatch, wait, words):
    def gather(calls, timeout_s, while_waiting):
        raise WorkerError(f"not done within {timeout_s} s", "rollout worker", "hang")

    monkeypatch.setattr(rollouts, "gather", gather)
    made = process()
    made._remote = SimpleNamespace(call=lambda *args: args)
    with pytest.raises(WorkerError) as caught:
        wait(made)
    assert str(caught.value) == words
    assert (caught.value.worker, caught.value.how) == ("rollout worker", "hang")


def test_a_lost_rollout_worker_is_noticed_while_its_engines_are_asked(monkeypatch):
    def lost():
        raise WorkerError("rollout worker does not answer")

    def gather(calls, timeout_s, while_waiting):
        while_waiting()
        raise AssertionError("nobody looks after the rollout worker meanwhile")

    monkeypatch.setattr(rollouts, "gather", gather)
    made = process()
    made._on_wait, made._remote = lost, SimpleNamespace(beside=lambda *args: args)
    with pytest.raises(WorkerError, match="does not answer"):
        made.fleet("status")


def test_an_engine_that_keeps_its_memory_is_blamed_before_the_worker_that_asks_for_it():
    check_under_way = HealthSpec().timeout_s
    flush = client._ATTEMPTS * client._ADMIN_S
    release_and_resume = 2 * client._ADMIN_S
    assert check_under_way + flush + release_and_resume < rollouts._FLEET_S


def test_a_worker_that_cannot_get_ready_is_noticed_while_the_trainer_is_waited_for():
    def fail(timeout_s):
        raise DataError("train.jsonl:500: is not JSON")

    made = process()
    made._on_wait = lambda: None
    made._peek = SimpleNamespace(is_done=lambda: False, result=fail)
    made.check()
    made._peek.is_done = lambda: True
    with pytest.raises(DataError, match="500"):
        made.check()
