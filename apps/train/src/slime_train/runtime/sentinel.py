"""Leave no process behind, whichever way a run ends, and touch nobody else's.

Every process of a run inherits one environment variable with a value no other run has. A small
process outside the run's tree waits for the driver to end (a pipe that the driver alone holds
open closes even when it is killed) and then ends whatever still carries that value.

The sentinel is started with ``python -S -E`` and imports nothing but the standard library, so it
is there within some 20 ms and costs no memory to speak of.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

TOKEN_VARIABLE = "SLIME_RUN_TOKEN"
GRACE_S = 5.0
"""Between asking and killing."""


@contextmanager
def owned_processes() -> Generator[str]:
    """Give this process's future descendants a token and end them all on the way out."""
    token = uuid.uuid4().hex
    os.environ[TOKEN_VARIABLE] = token
    reader, writer = os.pipe()
    os.set_inheritable(writer, False)
    sentinel = subprocess.Popen(
        [sys.executable, "-S", "-E", __file__, token],
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


def _signal_all(token: str, signum: int) -> int:
    pids = carriers(token)
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue
    return len(pids)


def _wait_for_driver_and_end(token: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()  # until the driver's end of the pipe closes
    end_processes(token)


if __name__ == "__main__":
    _wait_for_driver_and_end(sys.argv[1])
