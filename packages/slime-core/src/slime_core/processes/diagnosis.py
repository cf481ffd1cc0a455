"""What a process that does not answer is doing, as far as another process can find out."""

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TAIL_BYTES = 64 * 1024
_LOG_LINES = 15
_STACK_LINES = 60
_DUMP_S = 2.0
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or another device",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "Z": "ended",
    "X": "ended",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A process, known by more than a number that another one may get."""

    name: str
    pid: int
    birth: int
    """Start time in clock ticks since boot."""
    host: str
    log: Path | None = None
    stack: Path | None = None
    """Where it writes the stacks of its threads when it gets SIGUSR1 (``heartbeat.announce``)."""

    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine: only then can we look at it."""
        return self.host == socket.gethostname()

    def is_gone(self) -> bool:
        """Whether it has ended for certain."""
        if not self.is_here():
            return False
        fields = stat_fields(self.pid)
        return fields is None or fields[0] in "ZX" or int(fields[19]) != self.birth

    def kill(self) -> None:
        """End it, stopped or not, if it is the one that was meant."""
        if self.is_here() and not self.is_gone():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def stat_fields(pid: int) -> list[str] | None:
    """``/proc/PID/stat`` from the state on; None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def is_stopped(pid: int) -> bool:
    """Whether somebody stopped the process (SIGSTOP)."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] in "Tt"


def describe(subject: Subject) -> str:
    """State, where in the kernel, stacks of its threads, end of its log; takes up to 2 s."""
    parts: list[str] = []
    if not subject.is_here():
        parts.append(f"it runs on {subject.host}: only its log can be seen from here")
    elif not subject.is_gone():
        parts.append(_kernel(subject.pid))
        parts += _stack(subject)
    if subject.log is not None and (lines := tail(subject.log, _LOG_LINES)):
        parts.append(f"its log {subject.log} ends with:\n{lines}")
    return "\n".join(parts)


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file, long ones shortened; empty if there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(line[:400] for line in text.splitlines()[-lines:])


def _state(pid: int) -> str:
    fields: Any = stat_fields(pid)
    return "X" if fields is None else fields[0]


def _kernel(pid: int) -> str:
    state = _state(pid)
    text = f"state: {state} ({_STATES.get(state, 'unknown')})"
    with suppress(OSError):
        waits_in = Path(f"/proc/{pid}/wchan").read_text().strip("0\n ")
        text += f", in the kernel's {waits_in}" if waits_in else ""
    with suppress(OSError):  # root alone may read it
        frames = Path(f"/proc/{pid}/stack").read_text().splitlines()[:5]
        text += "".join(f"\n  {frame}" for frame in frames)
    return text


def _stack(subject: Subject) -> list[str]:
    """Ask for a dump; a process that is stopped cannot write one, one without a handler is left."""
    file = subject.stack
    if file is None or not file.exists() or _state(subject.pid) in "TtZX":
        return []
    before, deadline = file.stat().st_size, time.monotonic() + _DUMP_S
    with suppress(ProcessLookupError):
        os.kill(subject.pid, signal.SIGUSR1)
    while file.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    dumped = file.read_bytes()[before:].decode(errors="replace").splitlines()
    if not dumped:
        return ["it did not write its stack when it was asked to"]
    return ["its threads, the one last used first:", *dumped[-_STACK_LINES:]]
