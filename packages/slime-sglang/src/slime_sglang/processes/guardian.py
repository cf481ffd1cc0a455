"""Run one command and take its whole family down when the process that asked for it is gone.

Executed as a script by ``slime_sglang.processes.supervise`` (never imported), with nothing but the
standard library so that it starts in milliseconds::

    guardian.py PARENT_PID GRACE_S SCRATCH_DIR COMMAND...

It ends when the command ends (with the command's exit status, 128 + n for signal n), when its
parent is gone however that happened, or on SIGTERM: then the command gets GRACE_S seconds between
SIGTERM and SIGKILL. As a child subreaper it inherits every orphaned grandchild, so it signals the
processes it started and nothing else, and removes SCRATCH_DIR last.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_MS = 200
_REAP_S = 10.0


class _Asked(Exception):  # noqa: N818 -- a request to stop, not an error
    """SIGTERM arrived."""


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _on_signal(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise _Asked


def _spawn(command: list[str]) -> int:
    """Fork and execute in a session of its own; dies with this guardian."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error}\n")
        os._exit(127)


def _status(pid: int) -> int | None:
    """Exit status of ``pid`` or None while it runs; reaps other orphans on the way."""
    with contextlib.suppress(ChildProcessError):
        while True:
            done, status = os.waitpid(-1, os.WNOHANG)
            if done == 0:
                return None
            if done == pid:
                code = os.waitstatus_to_exitcode(status)
                return 128 - code if code < 0 else code
    return 1


def _watch(pid: int, parent: int) -> int | None:
    """Status of the command, or None when the parent went away first."""
    poller = select.poll()
    for target in (pid, parent):
        with contextlib.suppress(OSError):  # without pidfds the poll is a sleep
            poller.register(os.pidfd_open(target), select.POLLIN)
    while True:
        if os.getppid() != parent:
            return None
        status = _status(pid)
        if status is not None:
            return status
        poller.poll(_POLL_MS)


def _children() -> list[int]:
    me = str(os.getpid())
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[1] == me:
                    found.append(int(entry.name))
    return found


def _end(pid: int, grace_s: float) -> None:
    """SIGTERM to the command, SIGKILL to everything that is left of its family."""
    if grace_s > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and _status(pid) is None:
            time.sleep(0.05)
    deadline = time.monotonic() + _REAP_S
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    while (left := _children()) and time.monotonic() < deadline:
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def main(argv: list[str]) -> int:
    """Guard the command until it ends, and return its exit status."""
    parent, grace_s, scratch, command = int(argv[0]), float(argv[1]), argv[2], argv[3:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _on_signal)
    pid = _spawn(command)
    status: int | None = None
    grace = 0.0
    try:
        status = _watch(pid, parent)
    except _Asked:
        grace = grace_s
    _end(pid, grace)
    shutil.rmtree(scratch, ignore_errors=True)
    return 128 + signal.SIGKILL if status is None else status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
