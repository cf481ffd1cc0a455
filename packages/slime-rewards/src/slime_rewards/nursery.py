"""The caller's side of ``worker``: the process that starts workers, and each of them."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slime_rewards.readable import readable
from slime_rewards.sandbox import Limits
from slime_rewards.slots import STUCK_S
from slime_rewards.verdict import Question

logger = logging.getLogger(__name__)

_START_UP_S = 120.0
_LOAD_S = 60.0
_GRACE_S = 5.0
_LARGEST_RESPONSE = 1 << 20
_YIELDED = 5
"""How nice a worker is that takes long: a third of the time that others get."""


class Nursery:
    """The process that starts and ends workers; started anew when it is gone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._generation = 0

    def warm_up(self) -> None:
        """Start the process itself."""
        with self._lock:
            if self._control is None:
                self._launch()

    def start(self, channel: socket.socket, *, trusted: bool) -> tuple[int, int]:
        """Start a worker at the other end of ``channel``; its process and generation.

        Raises:
            OSError: it cannot be started.
        """
        message = {"do": "start", "trusted": trusted}
        with self._lock:
            try:
                pid = self._request(message, channel.fileno())["pid"]
            except OSError as error:
                logger.warning("the process that starts graders is started again: %s", error)
                self._stop()
                pid = self._request(message, channel.fileno())["pid"]
            return pid, self._generation

    def end(self, pid: int, generation: int) -> int | None:
        """Kill a worker's process group; its wait status where that is known."""
        with self._lock:
            if generation != self._generation or self._control is None:
                return None  # it ended with the nursery
            try:
                return self._request({"do": "end", "pid": pid})["status"]
            except OSError:
                self._stop()
                return None

    def close(self) -> None:
        """End it, and with it whatever worker there is."""
        with self._lock:
            self._stop()

    def _request(self, message: dict[str, Any], descriptor: int | None = None) -> dict[str, Any]:
        control = self._control or self._launch()
        descriptors = [] if descriptor is None else [descriptor]
        socket.send_fds(control, [json.dumps(message).encode()], descriptors)
        answer = control.recv(4096)
        if not answer:
            raise BrokenPipeError("it has ended")
        return json.loads(answer)

    def _launch(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_START_UP_S)
        with theirs:
            number = str(theirs.fileno())
            limits = json.dumps(asdict(self._limits))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "slime_rewards.worker", number, limits],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )
        self._control = ours
        self._generation += 1
        return ours

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(60)
            self._process = None


class Worker:
    """One process; used by one thread at a time."""

    def __init__(self, nursery: Nursery, *, trusted: bool) -> None:
        self._nursery = nursery
        self.trusted = trusted
        self._channel, theirs = socket.socketpair()
        self._loaded: set[str] = set()
        self.alive = False
        self.fresh = True
        """Whether it has its full share of the processors."""
        with theirs:
            try:
                self.pid, self._generation = nursery.start(theirs, trusted=trusted)
            except BaseException:
                self._channel.close()
                raise
        self.alive = True
        self.heard = time.monotonic()
        """When it answered last."""

    def ask(self, question: Question, seconds: float) -> dict[str, Any]:
        """What the grader answers.

        Raises:
            TimeoutError: it took too long; the process is of no more use.
            OSError: it is gone.
            ValueError: it answered nonsense.
        """
        if question.grader not in self._loaded:
            answer = self._exchange({"load": True, "grader": question.grader}, _LOAD_S, "loaded")
            if "error" in answer:
                return answer
            self._loaded.add(question.grader)
        request = asdict(question) | {"response": question.response[-_LARGEST_RESPONSE:]}
        return self._exchange(request | {"load": False}, seconds, "decided")

    def hears(self) -> bool:
        """Whether the process still holds its end; an idle one says nothing."""
        return not self._readable(0)

    def end(self) -> str:
        """Kill all of it; how it had ended."""
        if not self.alive:
            return "had ended"
        self.alive = False
        self._channel.close()
        status = self._nursery.end(self.pid, self._generation)
        if status is None:
            return "was lost"
        if os.WIFSIGNALED(status):
            return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"ended with exit code {os.WEXITSTATUS(status)}"

    def _exchange(self, request: dict[str, Any], seconds: float, done: str) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        late = f"grader {request['grader']!r}: not {done} within {seconds:g} s"
        answer = bytearray()
        try:
            self._channel.settimeout(seconds)
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            while not answer.endswith(b"\n"):
                answer += self._read(deadline)
        except TimeoutError as error:
            raise TimeoutError(late) from error
        self.heard = time.monotonic()
        return json.loads(answer)

    def _read(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if not (self._readable(min(left, STUCK_S)) or self._readable_late(deadline)):
            raise TimeoutError
        read = self._channel.recv(1 << 16)
        if not read:
            raise BrokenPipeError("without an answer")
        return read

    def _readable(self, seconds: float) -> bool:
        return readable(self._channel, seconds)

    def _readable_late(self, deadline: float) -> bool:
        """Wait on, but leave the processors to those that are quick."""
        self.fresh = False
        for yielded in (_yield_in_session, _yield_in_group):
            with contextlib.suppress(OSError):
                yielded(self.pid)
        return self._readable(deadline - time.monotonic())


def _yield_in_group(pid: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, _YIELDED)


def _yield_in_session(pid: int) -> None:
    """Where the kernel shares time among sessions first, niceness is the session's."""
    Path(f"/proc/{pid}/autogroup").write_text(str(_YIELDED))
