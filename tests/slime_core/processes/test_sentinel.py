import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slime_core.processes.sentinel import (
    TOKEN_VARIABLE,
    Terminated,
    carriers,
    end_processes,
    keeping_sigterm,
    owned_processes,
    sigterm_interrupts,
)

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('up', flush=True); time.sleep(600)"
)

DRIVER = f"""
import subprocess, sys, time
from slime_core.processes.sentinel import owned_processes
with owned_processes() as token:
    command = [sys.executable, "-c", {STUBBORN!r}]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    print(token, flush=True)
    if sys.argv[1] == "raise":
        raise SystemExit(3)
    time.sleep(600)
"""


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def bystander():
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, TOKEN_VARIABLE: "somebody-elses"},
    )
    yield process
    process.kill()
    process.wait()


def start_driver(mode):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, mode], stdout=subprocess.PIPE, text=True
    )
    token = driver.stdout.readline().strip()
    assert carriers(token)
    return driver, token


def test_a_killed_driver_leaves_nothing_and_touches_nobody_else(bystander):
    driver, token = start_driver("hang")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    assert wait_until(lambda: not carriers(token))
    assert bystander.poll() is None


FORGETFUL = f"""
import os, subprocess, sys, time
from slime_core.processes.sentinel import owned_processes
old = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with owned_processes() as token:
    time.sleep(0.1)
    command = [sys.executable, "-c", {STUBBORN!r}]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, env={{}})
    child.stdout.readline()
    print(old.pid, child.pid, flush=True)
    time.sleep(600)
"""


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_descendant_without_the_token_ends_too_and_an_older_one_does_not():
    driver = subprocess.Popen([sys.executable, "-c", FORGETFUL], stdout=subprocess.PIPE, text=True)
    old, child = map(int, driver.stdout.readline().split())
    time.sleep(3)  # the sentinel looks every other second
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    try:
        assert wait_until(lambda: not is_running(child))
        assert is_running(old)
    finally:
        os.kill(old, signal.SIGKILL)


def test_a_failing_driver_leaves_nothing(bystander):
    driver, token = start_driver("raise")
    assert driver.wait(timeout=30) == 3
    driver.stdout.close()
    assert carriers(token) == []
    assert bystander.poll() is None


def test_nothing_to_end_is_quick():
    with owned_processes() as token:
        begin = time.monotonic()
        end_processes(token)
        assert time.monotonic() - begin < 2


def test_sigterm_unwinds_once_and_a_second_one_does_not_disturb_the_end():
    unwound = []

    def terminated_twice():
        with sigterm_interrupts():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                unwound.append("to the end")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="ended by SIGTERM"):
        terminated_twice()
    assert unwound == ["to the end"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_that_somebody_replaced_by_another_is_still_of_sigterm():
    def replacing():
        with sigterm_interrupts():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            except KeyboardInterrupt:
                raise KeyboardInterrupt from None

    with pytest.raises(Terminated):
        replacing()


def test_ctrl_c_stays_what_it_is():
    def interrupted():
        with sigterm_interrupts():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as found:
        interrupted()
    assert not isinstance(found.value, Terminated)


def test_a_handler_that_a_library_sets_does_not_stay():
    def terminated():
        with sigterm_interrupts():
            with keeping_sigterm():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(Terminated):
        terminated()
