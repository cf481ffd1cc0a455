"""Processes that grade responses, each within a deadline; none can hurt its caller."""

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from slime_core.processes import events
from slime_core.processes.diagnosis import is_stopped

from slime_rewards import graders
from slime_rewards.nursery import Nursery, Worker
from slime_rewards.sandbox import Limits
from slime_rewards.slots import Slots
from slime_rewards.verdict import Outcome, Question, Verdict

logger = logging.getLogger(__name__)

_STANDBY = 16
"""How many workers may be started in place of those that take long."""
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
        self._nursery = Nursery(limits or Limits())
        self._slots = Slots(self._count, self._count + max(_STANDBY, 2 * self._count))
        self._threads = ThreadPoolExecutor(self._slots.most, thread_name_prefix="grader")
        self._idle: deque[Worker] = deque()
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

    def _take(self) -> Worker | None:
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

    def _start(self, *, trusted: bool) -> Worker:
        """A new process; one that is used once is no event."""
        worker = Worker(self._nursery, trusted=trusted)
        if not trusted:
            events.record("process", kind=_KIND, name=_NAME, pid=worker.pid)
        with contextlib.suppress(IndexError):
            seconds = round(time.monotonic() - self._missed.popleft(), 3)
            events.record("recovered", kind=_KIND, name=_NAME, seconds=seconds)
        return worker

    def _miss(self, worker: Worker, how: events.Lost) -> None:
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
        self, worker: Worker, question: Question, seconds: float, *, again: bool = True
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
