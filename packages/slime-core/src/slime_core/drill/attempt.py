"""One start of a command, watched through the events that its processes record."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from slime_core.drill.plan import START, Cell
from slime_core.processes.events import read_events

POLL_S = 0.02
GRACE_S = 30.0
BETWEEN = "between"
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hit:
    """A signal that was sent: when, and to whom."""

    time: float
    pid: int


class Attempt:
    """A process under way and the events recorded since it was started."""

    def __init__(self, process: "subprocess.Popen[bytes]", events: Path) -> None:
        self._process, self._path = process, events
        self._skip = len(read_events(events))
        self._size, self._events = -1, list[Event]()
        self.started = time.time()

    @property
    def pid(self) -> int:
        """Of the driver."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def events(self) -> list[Event]:
        """Everything recorded since the start; read again only when there is more."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:
            self._size, self._events = size, read_events(self._path)[self._skip :]
        return self._events

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether ``condition`` came true within ``seconds``; false once the process has ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.exit_code is not None or time.monotonic() > deadline:
                return condition()  # it may have come true at the very end
            time.sleep(POLL_S)
        return True

    def wait_for_loop(self, seconds: float) -> bool:
        """Whether the first phase of the loop was over within ``seconds``."""
        return self.wait(lambda: in_loop(self.events), seconds)

    def finish(self, seconds: float) -> bool:
        """Whether the process ended within ``seconds``."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
        return self.exit_code is not None

    def kill(self) -> None:
        """Kill the driver; what it started is ended by its sentinel."""
        if self.exit_code is None:
            self._process.kill()
            self._process.wait(timeout=GRACE_S)


@contextmanager
def attempt(words: Sequence[str], events: Path, log: Path) -> Generator[Attempt]:
    """Start a command, its output added to ``log``; it is killed if it still runs at the end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Attempt(process, events)
    try:
        yield running
    finally:
        running.kill()


def in_loop(events: Sequence[Event]) -> bool:
    """Whether the loop has begun: its first phase is over."""
    return any(event["event"] == "phase" and not event["begin"] for event in events)


def phase_begun(events: Sequence[Event], phase: str, first: int) -> Event | None:
    """The first time that ``phase`` was entered in the iteration ``first`` or later."""
    return next(
        (
            event
            for event in events
            if event["event"] == "phase"
            and event["begin"]
            and event["name"] == phase
            and event["iteration"] >= first
        ),
        None,
    )


def first_iteration(events: Sequence[Event]) -> int | None:
    """Where the loop began."""
    return next((event["iteration"] for event in events if event["event"] == "phase"), None)


def underway(events: Sequence[Event]) -> str:
    """The phase that was entered and not left; ``start`` before the first one."""
    phases = [event for event in events if event["event"] == "phase"]
    if not phases:
        return START
    return phases[-1]["name"] if phases[-1]["begin"] else BETWEEN


def usual_lengths(events: Sequence[Event]) -> dict[str, float]:
    """Median seconds of every phase."""
    lengths: dict[str, list[float]] = {}
    begun: dict[str, float] = {}
    for event in events:
        if event["event"] != "phase":
            continue
        if event["begin"]:
            begun[event["name"]] = event["time"]
        else:
            lengths.setdefault(event["name"], []).append(event["time"] - begun[event["name"]])
    return {name: median(seconds) for name, seconds in lengths.items()}


def newest_process(events: Sequence[Event], kind: str) -> int | None:
    """The pid of the process of this kind that came up last, if it is still there."""
    pids = [e["pid"] for e in events if e["event"] == "process" and e["kind"] == kind]
    return next((pid for pid in reversed(pids) if is_alive(pid)), None)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def strike(running: Attempt, cell: Cell) -> Hit | None:
    """Send the cell's signal to a process of its kind; None when there is none."""
    driver = cell.kind == "driver"
    pid = running.pid if driver else newest_process(running.events, cell.kind)
    if pid is None:
        return None
    hit = Hit(time.time(), pid)
    try:
        os.kill(pid, signal.SIGKILL if cell.fault == "KILL" else signal.SIGSTOP)
    except ProcessLookupError:
        return None
    return hit
