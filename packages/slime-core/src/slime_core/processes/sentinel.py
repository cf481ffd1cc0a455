"""Leave no process behind, whichever way a run ends, and touch nobody else's.

Every process of a run inherits one environment variable with a value no other run has. A small
process outside the run's tree waits for the driver to end (a pipe that the driver alone holds
open closes even when it is killed) and then ends whatever still carries that value, or was seen
to descend from the driver: a process that writes a title over its environment carries nothing.

The sentinel is started with ``python -I -S`` and imports nothing but the standard library, so it
is there within some 20 ms and costs no memory to speak of.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

TOKEN_VARIABLE = "SLIME_RUN_TOKEN"
GRACE_S = 5.0
"""Between asking and killing."""
_LOOK_S = 2.0


@contextmanager
def owned_processes() -> Generator[str]:
    """Give this process's future descendants a token and end them all on the way out."""
    token = uuid.uuid4().hex
    os.environ[TOKEN_VARIABLE] = token
    reader, writer = os.pipe()
    os.set_inheritable(writer, False)
    sentinel = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, token],
        stdin=reader,
        env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
        start_new_session=True,
    )
    os.close(reader)
    try:
        yield token
    finally:
        end_processes(token)
        os.environ.pop(TOKEN_VARIABLE, None)
        os.close(writer)
        sentinel.wait(timeout=4 * GRACE_S)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextmanager
def sigterm_interrupts() -> Generator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that what was started is ended.

    Raises:
        Terminated: it arrived. A second one changes nothing: ``timeout`` sends two, and whoever
            cannot wait sends SIGKILL.
    """
    arrived = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:  # Ray raises another one than the handler did
        if arrived:
            raise Terminated("ended by SIGTERM") from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def keeping_sigterm() -> Generator[None]:
    """Put the handler of SIGTERM back that a library replaces in the block, in Python or below."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():  # nobody else may set one
        signal.signal(signal.SIGTERM, handler)


def carriers(token: str) -> list[int]:
    """Pids, other than our own, whose environment holds ``token``."""
    needle = f"{TOKEN_VARIABLE}={token}".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # gone meanwhile, or another user's
            continue
        if needle in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def end_processes(token: str, grace_s: float = GRACE_S) -> None:
    """Ask every carrier of ``token`` to end, then kill those that did not within ``grace_s``."""
    _signal_all(token, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while carriers(token) and time.monotonic() < deadline:
        time.sleep(0.05)
    for _ in range(20):  # a dying parent may still be starting children
        if not _signal_all(token, signal.SIGKILL):
            return
        time.sleep(0.05)


def end_own_processes() -> None:
    """End whatever this process has started since it has a token; nothing where it has none."""
    if token := os.environ.get(TOKEN_VARIABLE):
        end_processes(token)


def _signal_all(token: str, signum: int) -> int:
    pids = carriers(token)
    _signal(pids, signum)
    return len(pids)


def _signal(pids: Iterable[int], signum: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


def _wait_for_driver_and_end(token: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    driver, seen = os.getppid(), dict[int, int]()
    while not select.select([sys.stdin], [], [], _LOOK_S)[0]:  # the driver's end is open
        seen = _descendants(driver, seen)
    _signal(_still_there(seen), signal.SIGTERM)
    end_processes(token)
    _signal(_still_there(seen), signal.SIGKILL)


def _descendants(root: int, seen: dict[int, int]) -> dict[int, int]:
    """Younger processes below ``root`` and below those seen before, with their times of birth."""
    family = {root} | _still_there(seen)
    table = dict(_parents_and_births())
    own_birth = table[os.getpid()][1]
    grown = True
    while grown:
        below = {pid for pid, (parent, _) in table.items() if parent in family}
        grown = not below <= family
        family |= below
    family -= {root, os.getpid()}
    return {pid: table[pid][1] for pid in family if pid in table and table[pid][1] > own_birth}


def _still_there(seen: dict[int, int]) -> set[int]:
    """Those of ``seen`` whose number has not gone to another process."""
    births = {pid: birth for pid, (_, birth) in _parents_and_births()}
    return {pid for pid, birth in seen.items() if births.get(pid) == birth}


def _parents_and_births() -> Iterator[tuple[int, tuple[int, int]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):  # gone meanwhile
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), (int(fields[1]), int(fields[19]))


if __name__ == "__main__":
    _wait_for_driver_and_end(sys.argv[1])
