import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from slime_core.errors import EngineError
from slime_sglang.processes.supervise import Command, Supervised, log_tail, wait_until

# A grandchild that leaves its parent's session and ignores SIGTERM: the worst kind.
FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"],
    start_new_session=True)
print("family", os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def command(code: str, log_path: Path) -> Command:
    return Command(
        name="toy",
        argv=[sys.executable, "-S", "-c", code],
        log_path=log_path,
        env=dict(os.environ),
        grace_s=0.3,
    )


def family_of(log_path: Path) -> list[psutil.Process]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        words = log_tail(log_path).split()
        if len(words) == 3:
            return [psutil.Process(int(pid)) for pid in words[1:]]
        time.sleep(0.02)
    raise AssertionError("the family did not start")


def assert_gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_stop_ends_a_grandchild_that_left_the_session_and_ignores_sigterm(tmp_path: Path) -> None:
    process = Supervised(command(FAMILY, tmp_path / "log"))
    family = family_of(tmp_path / "log")
    process.stop()
    assert_gone(family)
    process.stop()


def test_a_command_is_killed_at_once_also_when_it_has_hardly_begun(tmp_path: Path) -> None:
    began = time.monotonic()
    process = Supervised(command(FAMILY, tmp_path / "log"))
    process.kill()
    assert time.monotonic() - began < 10
    assert process.exit_code is not None


def test_a_killed_owner_takes_the_whole_family_along(tmp_path: Path) -> None:
    owner_code = f"""
import os, sys, time
from pathlib import Path
from slime_sglang.processes.supervise import Command, Supervised
kept = Supervised(Command(name="toy", argv=[sys.executable, "-S", "-c", {FAMILY!r}],
    log_path=Path({str(tmp_path / "log")!r}), env=dict(os.environ)))
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", owner_code])
    try:
        family = family_of(tmp_path / "log")
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert_gone(family)


def test_a_killed_guardian_takes_the_command_along(tmp_path: Path) -> None:
    code = "import os, time; print('family', os.getpid(), os.getpid(), flush=True); time.sleep(600)"
    process = Supervised(command(code, tmp_path / "log"))
    family = family_of(tmp_path / "log")
    os.kill(process.pid, signal.SIGKILL)
    assert_gone(family)
    process.stop()


def test_a_death_while_starting_shows_exit_code_and_log(tmp_path: Path) -> None:
    code = "import sys; print('cannot find the weights'); sys.exit(7)"
    process = Supervised(command(code, tmp_path / "log"))
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"exit code 7 while starting") as caught:
        wait_until(process, lambda: False, 60)
    assert time.monotonic() - began < 20
    assert "cannot find the weights" in str(caught.value)
    assert str(tmp_path / "log") in str(caught.value)


def test_a_death_by_signal_is_128_plus_its_number(tmp_path: Path) -> None:
    process = Supervised(command("import os; os.kill(os.getpid(), 9)", tmp_path / "log"))
    with pytest.raises(EngineError, match="exit code 137"):
        wait_until(process, lambda: False, 60)


def test_a_deadline_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    process = Supervised(command("import time; time.sleep(600)", tmp_path / "log"))
    try:
        with pytest.raises(EngineError, match=r"was not ready after 0\.2 s"):
            wait_until(process, lambda: False, 0.2)
    finally:
        process.stop()


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    bad = Command(name="toy", argv=["/no/such/thing"], log_path=tmp_path / "log", env={})
    with pytest.raises(EngineError, match="cannot run /no/such/thing"):
        wait_until(Supervised(bad), lambda: False, 30)


def test_temporary_files_of_the_command_are_removed(tmp_path: Path) -> None:
    code = "import os; print('x', os.environ['TMPDIR'], 'y', flush=True)"
    process = Supervised(command(code, tmp_path / "log"))
    while process.exit_code is None:
        time.sleep(0.02)
    scratch = Path(log_tail(tmp_path / "log").split()[1])
    assert scratch.name.startswith("slime-")
    assert not scratch.exists()


def test_a_log_tail_is_the_last_lines_shortened(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {i}\n" for i in range(50)) + "x" * 1000)
    tail = log_tail(path, 3).splitlines()
    assert tail[:2] == ["line 48", "line 49"]
    assert len(tail[2]) == 400
    assert log_tail(tmp_path / "absent") == ""
