"""Child processes that cannot outlive the run and never fail silently."""

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slime_core.errors import EngineError

from slime_sglang.processes.ports import PortLease

logger = logging.getLogger(__name__)

_GUARDIAN = Path(__file__).with_name("guardian.py")
_KILL_S, _KILL_AGAIN_S = 15.0, 0.05
_TAIL_LINES = 30
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run, where its output goes, and how long it may take to obey SIGTERM."""

    name: str
    argv: Sequence[str]
    log_path: Path
    env: Mapping[str, str]
    grace_s: float = 1.0


class Running(Protocol):
    """A command that was started, here or by somebody on another machine."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        ...

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        ...

    @property
    def command_pid(self) -> int | None:
        """The command's own process id; None when it has ended."""
        ...

    @property
    def is_stopped(self) -> bool:
        """Whether a process of the command is stopped (SIGSTOP), and so answers nobody."""
        ...

    def stop(self) -> None:
        """End it in order."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


def check(process: Running, doing: str = "running") -> None:
    """Raise ``EngineError`` with the end of its log when it is no longer alive."""
    code = process.exit_code
    if code is not None:
        raise EngineError(
            f"{process.name} ended with exit code {code} while {doing}; {last_words(process)}"
        )


def last_words(process: Running) -> str:
    """Where its log is and how it ends."""
    return f"its log is {process.log_path} and ends with:\n{log_tail(process.log_path)}"


def wait_until(
    process: Running, ready: Callable[[], bool], deadline_s: float, *, every_s: float = 0.1
) -> None:
    """Return as soon as ``ready()``; ``EngineError`` if it dies or the deadline passes."""
    deadline = time.monotonic() + deadline_s
    while not ready():
        check(process, "starting")
        if time.monotonic() > deadline:
            raise not_ready(process, deadline_s)
        time.sleep(every_s)


def not_ready(process: Running, after_s: float) -> EngineError:
    """What to raise when it takes longer than ``after_s`` to start."""
    return EngineError(f"{process.name} was not ready after {after_s:g} s; {last_words(process)}")


class Supervised:
    """A running command with everything it starts; belongs to the process that created it.

    The command runs under a guardian (``slime_sglang.processes.guardian``) that kills the whole
    family when this process ends in any way. Not picklable.
    """

    def __init__(self, command: Command, ports: PortLease | None = None) -> None:
        """``ports`` are those it listens on, given back when it has been ended."""
        self._ports = ports
        self.name = command.name
        self.log_path = command.log_path
        self._grace_s = command.grace_s
        command.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = scratch = tempfile.mkdtemp(prefix="slime-")
        logger.info("starting %s: %s (log: %s)", self.name, shlex.join(command.argv), self.log_path)
        guarded = [sys.executable, "-I", "-S", str(_GUARDIAN)]
        guarded += [str(os.getpid()), str(command.grace_s), scratch, *command.argv]
        try:
            with command.log_path.open("wb") as log:
                self._guardian = subprocess.Popen(
                    guarded,
                    env={**command.env, "TMPDIR": scratch},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    @property
    def pid(self) -> int:
        """The guardian's process id."""
        return self._guardian.pid

    @property
    def command_pid(self) -> int | None:
        """The command's own process id; None when it has ended."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        with contextlib.suppress(OSError):
            return next((int(word) for word in children.read_text().split()), None)
        return None

    @property
    def is_stopped(self) -> bool:
        """Whether a process of the command is stopped (SIGSTOP), and so answers nobody."""
        waiting = [self.pid]
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(OSError, IndexError):
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if state in "Tt":
                    return True
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                waiting += [int(word) for word in children.split()]
        return False

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._guardian.poll()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL, to what this command started; returns when all of it is gone."""
        if self._guardian.poll() is None:
            self._guardian.terminate()
            try:
                self._guardian.wait(self._grace_s + 15)
            except subprocess.TimeoutExpired:
                logger.warning("%s did not stop in time; killing its guardian", self.name)
                self._guardian.kill()  # the command itself dies with it
                self._guardian.wait(5)
        self._tidy()

    def kill(self) -> None:
        """End it at once, whatever state it is in; returns when all of it is gone."""
        if self._guardian.poll() is None:
            self._guardian.send_signal(signal.SIGCONT)
            deadline = time.monotonic() + _KILL_S
            while self._guardian.poll() is None and time.monotonic() < deadline:
                self._kill_command()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._guardian.wait(_KILL_AGAIN_S)
            if self._guardian.poll() is None:
                self._guardian.kill()
                self._guardian.wait(5)
        self._tidy()

    def _kill_command(self) -> None:
        """The guardian sees to the rest; one that has just begun has no command yet."""
        command = self.command_pid
        if command is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(command, signal.SIGKILL)

    def _tidy(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        if self._ports is not None:
            self._ports.close()


def log_tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """The last ``lines`` of a text file, long lines shortened; empty if there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(line[:400] for line in text.splitlines()[-lines:])


def keep_log(path: Path) -> None:
    """Let the next process have a log of its own: this one's is ``NAME.lost1.log``, 2, ..."""
    number = 1
    while (kept := path.with_suffix(f".lost{number}.log")).exists():
        number += 1
    with contextlib.suppress(FileNotFoundError):
        path.rename(kept)
