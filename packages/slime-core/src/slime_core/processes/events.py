"""What happened to the processes of a run and when, in one file that every process appends to.

``events.jsonl`` holds one object a line, with ``time`` (Unix seconds), ``pid`` (of who wrote it,
unless the event is about a process) and ``event``, one of

    process    kind, name, pid: this process is up
    started    what, seconds that it took: one step of the start is done
    phase      name, iteration, begin: the loop enters (true) or leaves (false) a phase
    lost       kind, name, pid_lost, how (exit or hang), seconds since it last answered
    recovered  kind, name, seconds since it was lost
    gave_up    reason

A line is written by one ``write`` to a file opened for appending, so lines of several processes
and threads never mix.
"""

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

FILE_NAME = "events.jsonl"

Kind = Literal[
    "driver",
    "rollout_worker",
    "trainer_rank",
    "critic_rank",
    "engine",
    "launcher",
    "router",
    "reward_worker",
    "data_worker",
]
Phase = Literal["generate", "train", "publish", "save", "evaluate"]
Lost = Literal["exit", "hang"]


class Events:
    """Appends to one file of events; cheap to make, in as many processes as there are."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, event: str, **fields: Any) -> None:
        """Append one event; it is in the file when this returns. ``pid`` may be another's."""
        line = json.dumps({"event": event, "time": time.time(), "pid": os.getpid(), **fields})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, _behind_a_cut_line(file) + line.encode() + b"\n")
        finally:
            os.close(file)

    def process(self, kind: Kind, name: str, pid: int | None = None) -> None:
        """A process is up; our own unless ``pid`` says which."""
        self.record("process", kind=kind, name=name, pid=pid or os.getpid())

    def started(self, what: str, seconds: float) -> None:
        """One step of the start is done; the terminal shows it."""
        self.record("started", what=what, seconds=round(seconds, 3))

    def phase(self, name: Phase, iteration: int, *, begin: bool) -> None:
        """The loop enters or leaves a phase."""
        self.record("phase", name=name, iteration=iteration, begin=begin)

    def lost(self, kind: Kind, name: str, pid: int, *, how: Lost, seconds: float) -> None:
        """A process ended or stopped to answer, ``seconds`` after its last sign of life."""
        fields = {"pid_lost": pid, "how": how, "seconds": round(seconds, 3)}
        self.record("lost", kind=kind, name=name, **fields)

    def recovered(self, kind: Kind, name: str, *, seconds: float) -> None:
        """What was lost works again, ``seconds`` after its loss was noticed."""
        self.record("recovered", kind=kind, name=name, seconds=round(seconds, 3))

    def gave_up(self, reason: str) -> None:
        """The run ends, because losses repeat."""
        self.record("gave_up", reason=reason)


_own: list[Events] = []


def keep_in(path: Path) -> None:
    """What this process records by ``record`` goes to ``path`` from now on."""
    _own[:] = [Events(path)]


def record(event: str, **fields: Any) -> None:
    """Append to this process's file of events; nothing where it has none, as outside a run."""
    for events in _own:
        events.record(event, **fields)


def started(what: str, seconds: float) -> None:
    """One step of the start is done; where ``record`` would tell it."""
    for events in _own:
        events.started(what, seconds)


@contextmanager
def starting(what: str) -> Generator[None]:
    """Time a block, and record it as one step of the start when it is done."""
    begin = time.monotonic()
    yield
    started(what, time.monotonic() - begin)


class News:
    """What is appended to a file of events from now on, whoever appends it."""

    def __init__(self, path: Path) -> None:
        self._path, self._read_bytes = path, path.stat().st_size if path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """The events since the last call, oldest first; a line half written is left for later.

        A line that a full disk cut short is none, and no reason for a run to end.
        """
        try:
            if self._path.stat().st_size <= self._read_bytes:
                return []
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:  # there is none yet, or its file system is busy: the next look may succeed
            return []
        self._read_bytes += len(whole) + len(newline)
        return _events(whole)


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a file, oldest first; none when there is no file, or of a line cut short."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return _events(whole)


def _events(lines: bytes) -> list[dict[str, Any]]:
    """Those of whole lines: a process that was killed, or a full disk, leaves one cut short."""
    found: list[dict[str, Any]] = []
    for line in lines.splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def _behind_a_cut_line(file: int) -> bytes:
    """What to write first, so that a line that was cut short spoils no other."""
    size = os.fstat(file).st_size
    return b"\n" if size and os.pread(file, 1, size - 1) != b"\n" else b""
