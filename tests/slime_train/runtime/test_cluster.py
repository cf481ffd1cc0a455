import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray._private import services
from slime_core.errors import DataError, EngineError, SlimeError
from slime_core.plugins.mistakes import MistakeError
from slime_core.processes.heartbeat import ProcessLost, Watch
from slime_train.runtime.cluster import Remote, WorkerError, cluster, gather, share


class Worker:
    """What runs over there in these tests."""

    def __init__(self, greeting):
        self.greeting = greeting

    def greet(self, name):
        return f"{self.greeting} {name}"

    def fail(self):
        raise EngineError("engine 0 answered 500")

    def wait_in_vain(self):
        raise RuntimeError("[unbound_buffer.cc:84] Timed out waiting 600000ms for recv operation")

    def stumble(self):
        raise KeyError("lable")

    def die(self):
        os._exit(1)

    def hang(self):
        time.sleep(60)

    def progress(self):
        return 0.5


@pytest.fixture(scope="module")
def ray_cluster():
    with cluster(3):
        yield


@pytest.fixture
def worker(ray_cluster):
    # The class travels by value: test modules cannot be imported by a worker.
    import sys

    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[Worker.__module__])
    remote = Remote("worker 0", functools.partial(Worker, "hello"), peekable=True)
    yield remote
    remote.end()


def test_a_call_answers(worker):
    assert worker.call("greet", "ray").result(60) == "hello ray"


def test_shared_values_arrive_as_themselves(worker):
    assert worker.call("greet", share("object store")).result(60) == "hello object store"


def test_errors_come_back_as_what_they_were(worker):
    with pytest.raises(EngineError, match="engine 0 answered 500"):
        worker.call("fail").result(60)


class Unready:
    """Cannot be made."""

    def __init__(self, error):
        raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("train.jsonl:500: is not JSON"), "train.jsonl:500: is not JSON"),
        (ValueError("no chat template"), "ValueError: no chat template\n"),
        (RuntimeError("a data source's"), "RuntimeError: a data source's\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_worker_that_cannot_be_made_says_why_and_is_not_a_loss(worker, tmp_path, error, message):
    remote = Remote("worker 1", functools.partial(Unready, error), peekable=True)
    for ask in (remote.call, remote.beside):
        with pytest.raises(SlimeError) as raised, Watch(tmp_path, 60.0).blaming():
            ask("progress").result(60)
        assert isinstance(raised.value, ValueError)  # a mistake; a loss would be a RuntimeError
        assert str(raised.value).startswith(message)
    remote.end()


def test_other_errors_of_a_call_are_told_with_the_line_that_raised_them(worker):
    with pytest.raises(MistakeError, match=r"^KeyError: 'lable'\n.*line"):
        worker.call("stumble").result(60)


def test_a_worker_that_waited_in_vain_for_another_has_all_of_them_looked_at(worker, tmp_path):
    lost = pytest.raises(ProcessLost, match="Timed out waiting")
    with lost as caught, Watch(tmp_path, 60.0).blaming():
        worker.call("wait_in_vain").result(60)
    assert (caught.value.name, caught.value.how) == ("worker 0", "hang")


def test_a_dead_worker_is_named(worker):
    with pytest.raises(WorkerError, match="worker 0 died during `die`"):
        worker.call("die").result(60)


def test_a_worker_that_ray_ends_for_want_of_memory_is_lost_in_one_line(worker, monkeypatch):
    pending = worker.call("greet", "x")

    def get(ref, timeout):
        raise ray.exceptions.OutOfMemoryError("1 worker(s) were killed: 22 GB used\nObject store:")

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(WorkerError) as lost:
        pending.result(60)
    assert str(lost.value) == "worker 0 died during `greet`: 1 worker(s) were killed: 22 GB used"


def test_a_late_worker_is_named_and_can_be_peeked_at_meanwhile(worker):
    worker.call("greet", "x").result(60)
    pending = worker.call("hang")
    assert worker.beside("progress").result(30) == 0.5
    with pytest.raises(WorkerError, match=r"worker 0 did not finish `hang` within \d+ s"):
        pending.result(0.2)


def test_the_first_failure_ends_a_gather(worker):
    worker.call("greet", "x").result(60)
    begin = time.monotonic()
    with pytest.raises(EngineError):
        gather([worker.call("fail"), worker.call("hang")], 60, lambda: None)
    assert time.monotonic() - begin < 30


def test_a_ray_of_our_own_is_as_few_processes_as_it_can_be(ray_cluster):
    programs = {
        Path(word).name
        for process in psutil.Process().children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE  # a worker of another test that was killed
        for word in process.cmdline()[:4]
    }
    assert "raylet" in programs
    assert not programs & {"log_monitor.py", "monitor.py", "dashboard.py"}


def test_a_ray_of_our_own_that_does_not_start_is_tried_again(monkeypatch):
    tries: list[dict] = []

    def init(**options):
        tries.append(options)
        if len(tries) < 2:
            raise TimeoutError("the node timed out")

    monkeypatch.setattr("slime_train.runtime.cluster.ray.init", init)
    monkeypatch.setattr("slime_train.runtime.cluster.ray.shutdown", lambda: None)
    monkeypatch.setenv("SLIME_RUN_TOKEN", "of nobody")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with cluster(1):
        assert len(tries) == 2
        assert tries[0]["address"] == "local"  # and not whatever else runs on this machine
    tries.clear()
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with pytest.raises(WorkerError, match="joining RAY_ADDRESS=elsewhere:6379 failed"), cluster(1):
        raise AssertionError
    assert len(tries) == 1


def test_a_raylet_that_dies_while_ray_starts_is_noticed_at_once(monkeypatch):
    asked: list[str] = []

    def start_raylet(*, raylet_stderr_filepath):
        return SimpleNamespace(process=SimpleNamespace(poll=lambda: -9))

    def get_node():
        asked.append("is the node there?")
        raise RuntimeError("no node")

    def init(**options):
        services.start_raylet(raylet_stderr_filepath="/tmp/ray/logs/raylet.err")
        services.get_node()

    monkeypatch.setattr(services, "start_raylet", start_raylet)
    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr("slime_train.runtime.cluster.ray.init", init)
    monkeypatch.setattr("slime_train.runtime.cluster.ray.shutdown", lambda: None)
    monkeypatch.setenv("SLIME_RUN_TOKEN", "of nobody")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    begin = time.monotonic()
    expected = r"raylet has ended with exit code -9; its log is /tmp/ray/logs/raylet\.err"
    with pytest.raises(WorkerError, match=expected), cluster(1):
        raise AssertionError
    assert len(asked) == 2  # once for each try
    assert time.monotonic() - begin < 60


TERMINATED = """
import os, signal, sys, time
from slime_core.processes.sentinel import Terminated, sigterm_interrupts
from slime_train.runtime import env
env.prepare()
from slime_train.runtime.cluster import cluster
try:
    with sigterm_interrupts(), cluster(1):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
except Terminated:
    sys.exit(7)
"""


def test_sigterm_is_ours_while_ray_runs_and_nobody_prints_stacks():
    command = [sys.executable, "-c", TERMINATED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 7
    assert "SIGTERM" not in done.stderr + done.stdout
