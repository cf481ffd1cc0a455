"""Processes that grade responses, each within a deadline; none can hurt its caller."""

import asyncio
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
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slime_core.processes import events
from slime_core.processes.diagnosis import is_stopped

from slime_rewards import graders
from slime_rewards.readable import readable
from slime_rewards.sandbox import Limits
from slime_rewards.verdict import Outcome, Question, Verdict

logger = logging.getLogger(__name__)

_START_UP_S = 120.0
_LOAD_S = 60.0
_GRACE_S = 5.0
_LARGEST_RESPONSE = 1 << 20
_STUCK_S = 0.1
"""A worker busy for longer no longer counts as one: another takes its place."""
_STANDBY = 16
"""How many workers may be started in place of those."""
_YIELDED = 5
"""How nice those are: a third of the time that others get."""
_FROM_OUTSIDE = ("was killed by SIGKILL", "was lost")
"""Ends of a process that need not be the grader's doing."""
_KIND: events.Kind = "reward_worker"
_NAME = "reward worker"


class Workers:
    """Grades responses without ever stalling its caller; starts processes when first needed.

    A grader that takes longer than ``time_limit_s`` is killed with all it started, its process is
    replaced, and the outcome is an abstention. Workers that take long are stood in for before they
    are late, so responses queued behind them do not wait. One that somebody stops or kills is
    replaced as well, and what it was grading is graded again.
    """

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        time_limit_s: float = 5.0,
        limits: Limits | None = None,
    ) -> None:
        self._count = num_workers or max(1, min(8, (os.cpu_count() or 2) // 2))
        self._limit = time_limit_s
        self._nursery = _Nursery(limits or Limits())
        self._slots = _Slots(self._count, self._count + max(_STANDBY, 2 * self._count))
        self._threads = ThreadPoolExecutor(self._slots.most, thread_name_prefix="grader")
        self._idle: deque[_Worker] = deque()
        self._missed: deque[float] = deque()
        """When the loss of those was noticed that are not replaced yet."""

    async def ask(self, question: Question) -> Verdict:
        """The verdict on one response; never raises for what a grader does.

        Raises:
            PluginError: there is no such grader.
        """
        return await asyncio.wrap_future(self.submit(question))

    def submit(self, question: Question) -> "Future[Verdict]":
        """The same for callers without an event loop."""
        graders.require(question.grader)
        return self._threads.submit(self._ask, question)

    def warm_up(self) -> None:
        """Start the first process now, not when the first response waits for it."""
        self._threads.submit(self._nursery.warm_up)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        while self._idle:
            self._idle.pop().end()
        self._nursery.close()

    def _ask(self, question: Question) -> Verdict:
        trusted = graders.is_trusted(question.grader)
        with self._slots:
            try:
                worker = None if trusted else self._take()
                worker = worker or self._start(trusted=trusted)
            except OSError as error:
                return Verdict(outcome=Outcome.ERROR, error=f"no worker process: {error}")
            verdict = self._grade(worker, question, self._limit)
            if worker.alive and worker.fresh and not trusted and len(self._idle) < self._count:
                self._idle.append(worker)
            else:
                worker.end()
        return verdict

    def _take(self) -> "_Worker | None":
        """An idle worker that still lives."""
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return None
            if worker.hears():
                return worker
            self._miss(worker, "exit")
            worker.end()

    def _start(self, *, trusted: bool) -> "_Worker":
        """A new process; one that is used once is no event."""
        worker = _Worker(self._nursery, trusted=trusted)
        if not trusted:
            events.record("process", kind=_KIND, name=_NAME, pid=worker.pid)
        with contextlib.suppress(IndexError):
            seconds = round(time.monotonic() - self._missed.popleft(), 3)
            events.record("recovered", kind=_KIND, name=_NAME, seconds=seconds)
        return worker

    def _miss(self, worker: "_Worker", how: events.Lost) -> None:
        """Note that somebody else ended or stopped a process."""
        self._missed.append(now := time.monotonic())
        seconds = round(now - worker.heard, 3)
        fields = {"pid_lost": worker.pid, "how": how, "seconds": seconds}
        events.record("lost", kind=_KIND, name=_NAME, **fields)

    def _grade_anew(self, question: Question, seconds: float, *, trusted: bool) -> Verdict:
        """By another process: what befell the first one says nothing about the response."""
        logger.warning("a lost process of grader %r is replaced", question.grader)
        worker = self._start(trusted=trusted)
        try:
            return self._grade(worker, question, seconds, again=False)
        finally:
            worker.end()

    def _grade(
        self, worker: "_Worker", question: Question, seconds: float, *, again: bool = True
    ) -> Verdict:
        start = time.monotonic()
        try:
            answer = worker.ask(question, seconds)
        except TimeoutError as error:
            if is_stopped(worker.pid) and again:
                self._miss(worker, "hang")
                worker.end()
                return self._grade_anew(question, seconds, trusted=worker.trusted)
            worker.end()
            outcome, message = Outcome.ABSTENTION, str(error)
        except (OSError, ValueError) as error:
            end = worker.end()
            left = seconds - (time.monotonic() - start)
            if end in _FROM_OUTSIDE and again and left > 0:
                self._miss(worker, "exit")
                return self._grade_anew(question, left, trusted=worker.trusted)
            outcome = Outcome.ERROR
            message = f"the process of grader {question.grader!r} {end} ({error})"
        else:
            took = answer.get("seconds", time.monotonic() - start)
            if "error" in answer:
                return Verdict(outcome=Outcome.ERROR, error=answer["error"], seconds=took)
            return Verdict(outcome=Outcome.VALUE, reward=answer["reward"], seconds=took)
        return Verdict(outcome=outcome, error=message, seconds=time.monotonic() - start)


class _Slots:
    """So many may grade at once; who takes long no longer counts, up to ``most`` in all."""

    def __init__(self, count: int, most: int) -> None:
        self._count = count
        self.most = most
        self._change = threading.Condition()
        self._since: dict[int, float] = {}

    def __enter__(self) -> None:
        with self._change:
            while not self._free():
                self._change.wait(_STUCK_S / 3)
            self._since[threading.get_ident()] = time.monotonic()

    def __exit__(self, *_: object) -> None:
        with self._change:
            del self._since[threading.get_ident()]
            self._change.notify()

    def _free(self) -> bool:
        now = time.monotonic()
        quick = sum(now - since < _STUCK_S for since in self._since.values())
        return quick < self._count and len(self._since) < self.most


class _Nursery:
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


class _Worker:
    """One process; used by one thread at a time."""

    def __init__(self, nursery: _Nursery, *, trusted: bool) -> None:
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
        if not (self._readable(min(left, _STUCK_S)) or self._readable_late(deadline)):
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
