import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
from slime_core.errors import ConfigError, EngineError, SlimeError
from slime_core.processes.events import FILE_NAME, read_events
from slime_core.processes.heartbeat import ProcessLost, Watch, WorkerError

WORKER = """
import sys, time
from pathlib import Path
from slime_core.processes.heartbeat import announce
directory = Path(sys.argv[1])
log = directory / "w.log"
log.write_text("first line\\nreading shard 7\\n")
def forward_pass():
    time.sleep(100)
announce(directory, "trainer_rank", "trainer rank 1", log)
forward_pass()
"""


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path, timeout_s=3.0)


@pytest.fixture
def worker(tmp_path, watch):
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not read_events(tmp_path / FILE_NAME) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait(10)


def watched(watch, seconds):
    """What the watch finds within ``seconds``, and after how long."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        try:
            watch.check()
        except ProcessLost as lost:
            return lost, time.monotonic() - begin
        time.sleep(0.1)
    return None, seconds


def test_a_worker_tells_that_it_is_up(worker, tmp_path):
    [event] = read_events(tmp_path / FILE_NAME)
    assert (event["event"], event["kind"], event["pid"]) == ("process", "trainer_rank", worker.pid)


def test_one_that_beats_is_left_alone_beyond_the_timeout(worker, watch):
    assert watched(watch, 5)[0] is None


def test_one_that_ended_is_noticed_at_the_next_look(worker, watch):
    assert watched(watch, 1)[0] is None
    worker.kill()
    lost, seconds = watched(watch, 20)
    assert (lost.how, lost.name, lost.pid) == ("exit", "trainer rank 1", worker.pid)
    assert seconds < 2
    assert "reading shard 7" in str(lost)


def test_one_that_is_stopped_is_named_described_and_killed(worker, watch):
    assert watched(watch, 1)[0] is None
    worker.send_signal(signal.SIGSTOP)
    lost, seconds = watched(watch, 30)
    assert (lost.how, lost.kind) == ("hang", "trainer_rank")
    assert 2 < seconds < 8
    assert f"trainer rank 1 (pid {worker.pid}) has given no sign of life for 3." in str(lost)
    assert "--heartbeat-timeout-s 3" in str(lost)
    assert "state: T (stopped by a signal)" in str(lost)
    assert "reading shard 7" in str(lost)
    assert worker.wait(10) == -signal.SIGKILL


def test_a_deadline_that_passed_tells_what_everybody_is_doing(worker, watch):
    late = WorkerError("trainer rank 0 did not finish `train` within 9 s", "trainer rank 0", "hang")
    with pytest.raises(ProcessLost) as raised, watch.blaming():
        raise late
    assert (raised.value.name, raised.value.how) == ("trainer rank 0", "hang")
    assert "did not finish `train`" in str(raised.value)
    assert "in forward_pass" in str(raised.value), "no stack of the rank that lives"
    assert worker.poll() is None


def test_a_watcher_that_was_away_starts_anew(worker, tmp_path):
    now = [0.0]
    watch = Watch(tmp_path / "elsewhere", 60.0, clock=lambda: now[0])
    watch._place = tmp_path / ".heartbeats"
    now[0] = 1.0
    watch.check()
    worker.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    now[0] = 100.0  # the driver itself was stopped in between
    watch.check()
    now[0] = 103.0
    watch.check()
    for later in range(104, 159):
        now[0] = float(later)
        watch.check()
    now[0] = 161.0
    with pytest.raises(ProcessLost):
        watch.check()


def test_the_failure_of_a_neighbour_is_blamed_on_the_one_that_died(worker, watch):
    worker.kill()
    with pytest.raises(ProcessLost, match="trainer rank 1") as raised, watch.blaming():
        raise EngineError("connection closed by peer")
    assert raised.value.how == "exit"


def test_failures_while_everybody_lives_stay_what_they_are(worker, watch):
    with pytest.raises(EngineError), watch.blaming():
        raise EngineError("engine 0 answered 500")


def test_mistakes_of_the_user_are_told_at_once(worker, watch):
    begin = time.monotonic()
    with pytest.raises(ConfigError), watch.blaming():
        raise ConfigError("give --num-rollout")
    assert time.monotonic() - begin < 1


def test_beats_of_an_earlier_run_do_not_count(worker, tmp_path):
    worker.kill()
    worker.wait(10)
    assert watched(Watch(tmp_path, 3.0), 1)[0] is None


def test_errors_of_calls_survive_pickling():
    error = pickle.loads(pickle.dumps(WorkerError("late", "rollout worker", "hang")))
    assert (str(error), error.worker, error.how) == ("late", "rollout worker", "hang")
    assert isinstance(error, SlimeError)


def test_a_number_that_went_to_another_process_is_not_taken_for_the_old_one(worker, tmp_path):
    from slime_core.processes.diagnosis import Subject

    taken = Subject("old", os.getpid(), birth=1, host=os.uname().nodename)
    assert taken.is_gone()
    taken.kill()  # we live on
