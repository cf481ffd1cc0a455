"""Programs run in processes of their own, started by one that has never seen a test.

A process that is forked has all of its parent's memory: whoever knows what a program should print
must not be its parent. Each run may neither start processes, send signals, open sockets nor change
files, within limits of time, memory and output; what it prints is all that leaves it.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from slime_rewards import sandbox
from slime_rewards.readable import readable

_LARGEST_OUTPUT = 8 << 20
_MEMORY = 1 << 30
_UNCONFINED = 77
_DESCRIPTORS = 4096
_ABSENT = b"-"
_FOUND = b"+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is run: a program with what it reads, or followed by asserts."""

    program: str
    given: str = ""
    asserts: str | None = None


type Run = Callable[[Job], bytes | None]


class Runner:
    """The process that starts programs; ends with its parent. Used by one thread."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._pid = os.fork()
            if self._pid == 0:
                self._channel.close()
                _serve_and_exit(theirs)
        self._stream = self._channel.makefile("rwb")

    def run(self, job: Job, *, seconds: float) -> bytes | None:
        """What a program prints; None where it fails or is late.

        Raises:
            OSError: programs cannot be confined here, or the process is gone.
        """
        request = asdict(job) | {"seconds": seconds}
        self._stream.write(json.dumps(request).encode() + b"\n")
        self._stream.flush()
        kind, _, size = self._stream.readline().partition(b" ")
        if kind not in (_ABSENT, _FOUND):
            raise OSError("the process that runs programs has ended")
        body = self._stream.read(int(size))
        if kind == _FOUND:
            return body
        if body:
            raise OSError(body.decode())
        return None

    def __del__(self) -> None:
        """End the process."""
        with contextlib.suppress(AttributeError, OSError):
            self._stream.close()
            self._channel.close()
            os.kill(self._pid, signal.SIGKILL)  # others may hold its channel open
            os.waitpid(self._pid, 0)


def _serve_and_exit(channel: socket.socket) -> NoReturn:
    try:
        sandbox.die_with_parent(signal.SIGKILL)
        with channel, channel.makefile("rwb") as stream:
            for line in stream:
                kind, body = _answer(json.loads(line))
                stream.write(kind + b" %d\n" % len(body) + body)
                stream.flush()
    finally:
        os._exit(0)


def _answer(request: dict[str, Any]) -> tuple[bytes, bytes]:
    seconds = request.pop("seconds")
    try:
        output = _printed(Job(**request), seconds)
    except (OSError, ValueError) as error:
        return _ABSENT, str(error).encode(errors="replace") or b"OSError"
    return (_ABSENT, b"") if output is None else (_FOUND, output)


def _printed(job: Job, seconds: float) -> bytes | None:
    """What the program prints, or nothing but that it and the asserts ran to their end."""
    done = b"\n" + secrets.token_hex(16).encode()

    def run() -> None:
        asserts = job.asserts
        space: dict[str, Any] = {"__name__": "__main__" if asserts is None else "solution"}
        exec(compile(job.program, "solution", "exec"), space)
        if asserts is not None:
            exec(compile(asserts, "tests", "exec"), space)
            os.write(1, done)

    output = _output(run, job.given.encode(), seconds)
    if output is None or (job.asserts is not None and not output.endswith(done)):
        return None  # leaving early is no way to pass
    return output


def _output(run: Callable[[], None], given: bytes, seconds: float) -> bytes | None:
    """What ``run`` prints in a process of its own; None where it fails or is late."""
    deadline = time.monotonic() + seconds
    fed = os.memfd_create("stdin")
    read, written = os.pipe()
    try:
        with open(fed, "wb", closefd=False) as stream:
            stream.write(given)
        os.lseek(fed, 0, os.SEEK_SET)
        pid = os.fork()
        if pid == 0:
            _run_and_exit(run, fed, written)
        os.close(written)
        output = _drained(read, deadline)
        status = _ended(pid, deadline if output is not None else 0.0)
    finally:
        os.close(fed)
        os.close(read)
    if status == _UNCONFINED:
        raise OSError("the kernel has no filter of system calls: programs are not run without one")
    return output if status == 0 else None


def _drained(read: int, deadline: float) -> bytes | None:
    """All that comes out of ``read``; None where that is late or too much."""
    output = bytearray()
    while len(output) <= _LARGEST_OUTPUT:
        if not readable(read, deadline - time.monotonic()):
            return None
        piece = os.read(read, 1 << 16)
        if not piece:
            return bytes(output)
        output += piece
    return None


def _ended(pid: int, deadline: float) -> int:
    """Exit code of a process, killed when it does not end by itself."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run_and_exit(run: Callable[[], None], fed: int, written: int) -> NoReturn:
    status = 1
    try:
        sandbox.die_with_parent(signal.SIGKILL)
        os.dup2(fed, 0)
        os.dup2(written, 1)
        os.closerange(3, _DESCRIPTORS)
        os.chdir("/")
        sandbox.limit(sandbox.Limits(memory_bytes=_MEMORY, file_bytes=0))
        sandbox.drop_rights()
        if not sandbox.confine(strict=True):
            os._exit(_UNCONFINED)
        with open(0, encoding="utf-8") as sys.stdin, open(1, "w", encoding="utf-8") as sys.stdout:
            try:
                run()
                status = 0
            except SystemExit as stop:
                status = int(stop.code not in (None, 0))
            sys.stdout.flush()
    finally:
        os._exit(status)
