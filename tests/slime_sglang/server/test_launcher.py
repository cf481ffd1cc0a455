"""Servers of a machine, started and looked after from another process; here, another thread."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from slime_core.errors import EngineError
from slime_core.processes.heartbeat import WorkerError
from slime_core.processes.this_machine import network_address
from slime_sglang.processes.supervise import Command, Supervised, check
from slime_sglang.server import launcher
from slime_sglang.server.launch import EngineSpec
from slime_sglang.server.launcher import Launcher, launch_by


@dataclass
class Call:
    future: "Future[Any]"

    def is_done(self) -> bool:
        return self.future.done()

    def result(self, timeout_s: float) -> Any:
        try:
            return self.future.result(timeout_s)
        except TimeoutError as error:
            raise WorkerError(f"nothing within {timeout_s:g} s") from error


class Elsewhere:
    """Calls a launcher in threads, until its machine is gone."""

    def __init__(self) -> None:
        self.launcher, self.pool = Launcher(), ThreadPoolExecutor()
        self.gone, self.waiting = False, list[Future[Any]]()

    def call(self, method: str, *args: Any) -> Call:
        if self.gone:
            return lost()
        return Call(self.pool.submit(getattr(self.launcher, method), *args))


def lost() -> Call:
    future: Future[Any] = Future()
    future.set_exception(WorkerError("the launcher died"))
    return Call(future)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch):
    """Starts a process that sleeps, in place of SGLang."""

    def sleeps(spec: EngineSpec) -> tuple[str, Supervised]:
        argv = [
            sys.executable,
            "-S",
            "-c",
            "import time; print('here', flush=True); time.sleep(99)",
        ]
        log_path = spec.log_dir / f"{spec.name}.log"
        command = Command(name=spec.name, argv=argv, log_path=log_path, env=dict(os.environ))
        return f"http://{spec.host}:1", Supervised(command)

    monkeypatch.setattr(launcher, "launch", sleeps)
    machine = Elsewhere()
    yield machine
    for process in [*machine.launcher._servers.values()]:
        process.kill()
    machine.pool.shutdown()


def spec(tmp_path: Path) -> EngineSpec:
    return EngineSpec(name="engine_3", model_path=tmp_path, device="cpu", log_dir=tmp_path)


def until(ready: Any) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_of_another_machine_is_reached_over_the_network_seen_and_ended(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    url, process = launch_by(elsewhere, spec(tmp_path))
    assert url == f"http://{network_address()}:1"
    assert process.exit_code is None
    until(lambda: "here" in process.log_path.read_text())
    assert not process.is_stopped
    os.kill(process.command_pid or 0, signal.SIGSTOP)
    until(lambda: process.is_stopped)
    process.kill()
    until(lambda: process.exit_code is not None)
    assert process.exit_code == 137
    assert process.command_pid is None
    _, another = launch_by(elsewhere, spec(tmp_path))
    another.stop()
    until(lambda: another.exit_code is not None)
    assert elsewhere.launcher._servers == {}, "a run that lasts loses many engines"
    another.kill()
    assert (another.command_pid, another.is_stopped) == (None, False)
    assert elsewhere.launcher.wait(another._key) == 137  # a call that was overtaken


def test_the_end_of_a_server_of_another_machine_shows_its_log(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    _, process = launch_by(elsewhere, spec(tmp_path))
    until(lambda: "here" in process.log_path.read_text())
    pid = process.command_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: process.exit_code is not None)
    with pytest.raises(
        EngineError, match=r"engine engine_3 ended with exit code 137 while run"
    ) as e:
        check(process)
    assert "here" in str(e.value)


def test_a_server_is_lost_with_its_machine_and_not_started_there_again(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    _, process = launch_by(elsewhere, spec(tmp_path))
    elsewhere.gone, process._end = True, lost()
    assert process.exit_code == 137
    assert (process.command_pid, process.is_stopped) == (None, False)
    process.kill()
    process.stop()
    with pytest.raises(EngineError, match="engine_3 cannot be started on its machine: "):
        launch_by(elsewhere, spec(tmp_path))


def test_a_server_that_is_started_too_late_is_ended_as_soon_as_it_is(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, waited, late = launcher.launch, threading.Event(), list[Supervised]()

    def slow(wanted: EngineSpec) -> tuple[str, Supervised]:
        assert waited.wait(30)
        url, process = own(wanted)
        late.append(process)
        return url, process

    monkeypatch.setattr(launcher, "launch", slow)
    monkeypatch.setattr(launcher, "_START_S", 0.1)
    with pytest.raises(EngineError, match=r"engine_3 cannot be started .*nothing within 0.1 s"):
        launch_by(elsewhere, spec(tmp_path))
    waited.set()
    until(lambda: late and late[0].exit_code is not None)
    assert elsewhere.launcher._servers == {}


def test_a_server_whose_start_is_answered_too_late_is_ended_and_one_ended_first_never_starts(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, own = list[Supervised](), elsewhere.call

    def answered_late(method: str, *args: Any) -> Call:
        call = own(method, *args)
        if method != "start":
            return call
        call.future.result(30)
        started.extend(elsewhere.launcher._servers.values())
        return Call(Future())

    monkeypatch.setattr(elsewhere, "call", answered_late)
    monkeypatch.setattr(launcher, "_START_S", 0.0)
    with pytest.raises(EngineError, match="nothing within 0 s"):
        launch_by(elsewhere, spec(tmp_path))
    until(lambda: started[0].exit_code is not None)
    elsewhere.launcher.end("key", "kill")
    with pytest.raises(EngineError, match="engine_3 was given up before it was started"):
        elsewhere.launcher.start("key", spec(tmp_path))
