"""Servers of a machine, started and looked after from another process; here, another thread."""

import os
import signal
import sys
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
        return self.future.result(timeout_s)


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
    assert elsewhere.launcher.wait(1) == 137  # a call that was overtaken


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
