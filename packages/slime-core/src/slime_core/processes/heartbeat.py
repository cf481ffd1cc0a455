"""Signs of life of the processes of a run, and who watches for them.

Every rank and the rollout worker call ``announce`` first of all: from then on a thread touches a
file every second. The driver looks at these files while it waits for anything (``Watch.check``). A
process on the same machine that ended is noticed at the next look; one whose file has not changed
for --heartbeat-timeout-s hangs: it is stopped, or something holds the interpreter's lock. What a
process waits for with the lock released (another rank, a disk) is bounded by the deadline of the
call it is working on.

Ages are measured by the watcher's clock, from the moment it saw a file change, so clocks of other
machines do not matter; a watcher that did not look for a while (it was stopped itself) starts anew.
"""

import faulthandler
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slime_core.errors import SlimeError
from slime_core.processes.diagnosis import Subject, describe, stat_fields
from slime_core.processes.events import FILE_NAME, Kind, Lost, keep_in, record

BEAT_S = 1.0
_LOOK_S = 0.4
_AWAY_S = 5.0
_BLAME_S = 3.0
_DIRECTORY = ".heartbeats"


class ProcessLost(SlimeError, RuntimeError):  # noqa: N818 -- named for what happened
    """A process of the run ended or stopped to answer; its work can be done by another one."""

    def __init__(
        self, message: str, *, kind: Kind, name: str, pid: int, how: Lost, seconds: float
    ) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.how: Lost = how
        self.name, self.pid, self.seconds = name, pid, seconds


class WorkerError(SlimeError, RuntimeError):
    """A call to a process of the run died, failed or was not answered in time."""

    def __init__(self, message: str, worker: str = "", how: Lost = "exit") -> None:
        super().__init__(message)
        self.worker = worker
        self.how: Lost = how

    def set_by(self, flag: str | None) -> "WorkerError":
        """The same, naming the flag that a deadline was set by, where one has passed."""
        if flag is None or self.how != "hang":
            return self
        return WorkerError(f"{self} ({flag})", self.worker, self.how)

    def __reduce__(self) -> tuple[type["WorkerError"], tuple[str, str, Lost]]:
        """Survive pickling between processes."""
        return WorkerError, (str(self), self.worker, self.how)


def announce(directory: Path, kind: Kind, name: str, log: Path | None = None) -> None:
    """Tell the run in ``directory`` that this process is up, and go on telling.

    From here on what it records is an event of that run, and SIGUSR1 makes it write the stacks of
    its threads into a file.
    """
    place = directory / _DIRECTORY
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{name.replace(' ', '-')}.json"
    stack = path.with_suffix(".stack")
    faulthandler.register(signal.SIGUSR1, file=stack.open("w"), all_threads=True)
    fields = stat_fields(os.getpid())
    about = {
        "kind": kind,
        "name": name,
        "pid": os.getpid(),
        "birth": int(fields[19]) if fields else 0,
        "host": socket.gethostname(),
        "log": log and str(log),
        "stack": str(stack),
    }
    new = path.with_suffix(".new")
    new.write_text(json.dumps(about))
    new.replace(path)
    threading.Thread(target=_beat, args=(path,), name="heartbeat", daemon=True).start()
    keep_in(directory / FILE_NAME)
    record("process", kind=kind, name=name)


def _beat(path: Path) -> None:
    while True:
        time.sleep(BEAT_S)
        try:
            os.utime(path)
        except FileNotFoundError:  # the run has begun anew without us
            return
        except OSError:  # a file system that is busy: the next beat may get through
            continue


@dataclass(slots=True)
class _Member:
    subject: Subject
    kind: Kind
    beat: int
    seen: float


class Watch:
    """The driver's eye on everything that announced itself in a run's directory."""

    def __init__(
        self, directory: Path, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._place = directory / _DIRECTORY
        self._timeout_s, self._clock = timeout_s, clock
        self._members: dict[Path, _Member] = {}
        self._looked = self._patient_since = clock()
        shutil.rmtree(self._place, ignore_errors=True)  # whoever beat there before is not ours

    def check(self) -> None:
        """Raise ``ProcessLost`` for one that ended or hangs; one that hangs is then killed."""
        now = self._clock()
        if now - self._looked < _LOOK_S:
            return
        if now - self._looked > _AWAY_S:
            self._patient_since = now
        self._looked = now
        self._read(now)
        if lost := self._gone():
            raise lost
        for member in self._members.values():
            if now - max(member.seen, self._patient_since) > self._timeout_s:
                raise self._hung(member)

    @contextmanager
    def blaming(self) -> Generator[None]:
        """Turn what a lost process makes others fail with into ``ProcessLost``."""
        try:
            yield
        except (SlimeError, RuntimeError, OSError) as error:
            if lost := self._blame(error):
                raise lost from error
            raise

    def _blame(self, error: Exception) -> ProcessLost | None:
        """Who is behind a failure: a rank whose neighbour died complains about the connection.

        Waits a moment for the death to be seen. None when everybody lives and no call failed.
        """
        if isinstance(error, ProcessLost):
            return error
        mistake = isinstance(error, SlimeError) and isinstance(error, ValueError | ImportError)
        deadline = time.monotonic() + (0.0 if mistake else _BLAME_S)
        while True:
            self._read(self._clock())
            if lost := self._gone():
                return lost
            if time.monotonic() > deadline:
                if isinstance(error, WorkerError) and error.worker:
                    return self._accuse(error.worker, str(error), error.how)
                return None
            time.sleep(0.1)

    def _accuse(self, name: str, reason: str, how: Lost) -> ProcessLost:
        """The loss of a process that lives but failed, or has passed a deadline.

        A deadline is passed because of anybody: what all are doing is told.
        """
        self._read(self._clock())
        parts = [reason]
        for member in self._members.values() if how == "hang" else ():
            subject = member.subject
            parts.append(f"{subject.name} (pid {subject.pid}):\n{describe(subject)}")
        found = next((m for m in self._members.values() if m.subject.name == name), None)
        kind: Kind = found.kind if found else "trainer_rank"
        pid = found.subject.pid if found else 0
        seconds = self._clock() - found.seen if found else 0.0
        message = "\n".join(parts)
        return ProcessLost(message, kind=kind, name=name, pid=pid, how=how, seconds=seconds)

    def _read(self, now: float) -> None:
        for path in self._files():
            try:
                beat = path.stat().st_mtime_ns
                if path not in self._members:
                    self._members[path] = _member(path, beat, now)
            except FileNotFoundError:
                continue
            member = self._members[path]
            if member.beat != beat:
                member.beat, member.seen = beat, now

    def _files(self) -> Iterator[Path]:
        if self._place.is_dir():
            yield from self._place.glob("*.json")

    def _gone(self) -> ProcessLost | None:
        for member in self._members.values():
            if member.subject.is_gone():
                seconds = self._clock() - member.seen
                first = f"{member.subject.name} (pid {member.subject.pid}) has ended"
                return _lost(member, first, "exit", seconds)
        return None

    def _hung(self, member: _Member) -> ProcessLost:
        seconds = self._clock() - member.seen
        first = (
            f"{member.subject.name} (pid {member.subject.pid}) has given no sign of life for "
            f"{seconds:.1f} s (--heartbeat-timeout-s {self._timeout_s:g})"
        )
        lost = _lost(member, first, "hang", seconds)
        member.subject.kill()
        return lost


def _member(path: Path, beat: int, now: float) -> _Member:
    about = json.loads(path.read_text())
    log, stack = (Path(about[name]) if about[name] else None for name in ("log", "stack"))
    subject = Subject(about["name"], about["pid"], about["birth"], about["host"], log, stack)
    return _Member(subject, about["kind"], beat, now)


def _lost(member: _Member, first: str, how: Lost, seconds: float) -> ProcessLost:
    subject = member.subject
    message = "\n".join(filter(None, [first, describe(subject)]))
    return ProcessLost(
        message, kind=member.kind, name=subject.name, pid=subject.pid, how=how, seconds=seconds
    )
