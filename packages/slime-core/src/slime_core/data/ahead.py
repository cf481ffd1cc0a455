"""Read rows ahead in other processes; the order is that of one process."""

import contextlib
import logging
import pickle
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass, field
from itertools import batched, count
from typing import IO, Any

from slime_core.data.formats import Record
from slime_core.data.reading import Job, Outcome
from slime_core.errors import DataError
from slime_core.processes import events
from slime_core.processes.diagnosis import is_stopped

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 32
_CHUNKS_AHEAD = 4
"""Of each process."""
_ANSWER_S = 120.0
"""Of a process for one chunk, the first one with its start; later it counts as hung."""
_END_S = 5.0
_KIND: events.Kind = "data_worker"

Task = tuple[str, Record]
"""A source and one of its records."""


class LostWorkerError(DataError):
    """A process that reads ahead died or did not answer."""


class ReadAhead:
    """Does a ``Job`` in ``num_processes`` others, or in this one when there are none."""

    def __init__(self, job: Job, num_processes: int) -> None:
        self._job = job
        self._workers: list[_Worker] = []
        try:
            for number in range(num_processes):
                self._workers.append(_Worker(number, job))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run[T](self, items: Iterable[T], task: Callable[[T], Task]) -> Iterator[tuple[T, Outcome]]:
        """Every item with the outcome of its task, in order.

        A process that dies, is stopped, or does not answer within ``_ANSWER_S`` is replaced, and
        does again what it was asked. The first two are noticed when more items are asked for.

        Raises:
            DataError: the one in its place died or did not answer either.
        """
        if not self._workers:
            for item in items:
                yield item, self._job.do(*task(item))
            return
        waiting: deque[_Asked[T]] = deque()
        chunks, turn = batched(items, _ROWS_AT_ONCE), count()
        while True:
            while len(waiting) < _CHUNKS_AHEAD * len(self._workers):
                chunk = next(chunks, None)
                if chunk is None:
                    break
                asked = _Asked(chunk, [task(item) for item in chunk], next(turn) % self._count)
                asked.answer = self._workers[asked.number].submit(asked.tasks)
                waiting.append(asked)
            if not waiting:
                return
            self._replace_ended(waiting)
            try:
                outcomes = _result(waiting[0].answer)
            except LostWorkerError as error:
                logger.warning("%s: another process does it again", error)
                self._replace(waiting[0].number, waiting)
                outcomes = _result(waiting[0].answer)
            yield from zip(waiting.popleft().items, outcomes, strict=True)

    @property
    def _count(self) -> int:
        return len(self._workers)

    def _replace_ended(self, waiting: "Iterable[_Asked[Any]]") -> None:
        """At once, also where nothing of theirs is due yet."""
        for number, worker in enumerate(self._workers):
            if worker.ended or worker.is_stopped:
                logger.warning("data worker %d was ended or stopped: it is replaced", number)
                self._replace(number, waiting)

    def _replace(self, number: int, waiting: "Iterable[_Asked[Any]]") -> None:
        """Another process in place of one, which is asked everything that is not answered yet."""
        old, begin = self._workers[number], time.monotonic()
        seconds = round(begin - old.answered, 3)
        how: events.Lost = "exit" if old.ended else "hang"
        about = {"kind": _KIND, "name": old.name}
        events.record("lost", **about, pid_lost=old.pid, how=how, seconds=seconds)
        old.close()
        self._workers[number] = _Worker(number, self._job)
        events.record("recovered", **about, seconds=round(time.monotonic() - begin, 3))
        for asked in waiting:
            if asked.number == number:
                asked.answer = self._workers[number].submit(asked.tasks)

    def close(self) -> None:
        """End the processes; what they were asked for is dropped."""
        for worker in self._workers:
            worker.close()
        self._workers = []


def _result(future: "Future[list[Outcome]]") -> list[Outcome]:
    try:
        return future.result(_ANSWER_S)
    except NoAnswer:
        raise LostWorkerError(
            f"a process that reads prompts did not answer for {_ANSWER_S:.0f} s: "
            "--num-data-workers 0 reads them in the run's own"
        ) from None


@dataclass(slots=True)
class _Asked[T]:
    """A chunk, which process was asked for it, and its answer."""

    items: tuple[T, ...]
    tasks: list[Task]
    number: int
    answer: "Future[list[Outcome]]" = field(default_factory=Future)


class _Worker:
    """One process, and the thread that talks to it."""

    def __init__(self, number: int, job: Job) -> None:
        self.name = f"data worker {number}"
        # Not multiprocessing: that would import the main module of the run again.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, repr(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.answered = time.monotonic()
        events.record("process", kind=_KIND, name=self.name, pid=self.pid)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.name)
        self._started = self._thread.submit(self._send_job, job)  # takes seconds, nobody waits

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def is_stopped(self) -> bool:
        """Whether somebody stopped the process."""
        return is_stopped(self.pid)

    def submit(self, tasks: Sequence[Task]) -> "Future[list[Outcome]]":
        """Ask; the answer is ready when it is."""
        return self._thread.submit(self._ask, tasks)

    def close(self) -> None:
        """End the process, at work or not."""
        self._process.kill()
        self._process.wait(_END_S)
        self._thread.shutdown(cancel_futures=True)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be written is not wanted
                    pipe.close()

    def _ask(self, tasks: Sequence[Task]) -> list[Outcome]:
        self._started.result(timeout=_ANSWER_S)
        self._send(list(tasks))
        pipe = self._process.stdout
        assert pipe is not None
        try:
            outcomes = pickle.load(pipe)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._died(tasks) from error
        self.answered = time.monotonic()
        return outcomes

    def _send_job(self, job: Job) -> None:
        try:
            self._send(job)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DataError(
                f"the tokenizer cannot be sent to other processes ({error}): "
                "give --num-data-workers 0"
            ) from error

    def _send(self, value: Any) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pickle.dump(value, pipe)
            pipe.flush()
        except OSError as error:
            raise self._died(()) from error

    def _died(self, tasks: Sequence[Task]) -> LostWorkerError:
        code = self._process.wait(_END_S)
        ways = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        at = f" while it read {tasks[0][1].place} and the rows after it" if tasks else ""
        return LostWorkerError(f"{self.name} (process {self.pid}) {ways}{at}")


_PROGRAM = (
    "import ast, sys; sys.path[:] = ast.literal_eval(sys.argv[1]); "
    "from slime_core.data.ahead import serve; serve()"
)


def serve() -> None:
    """Answer until the asker is gone; what a tokenizer prints goes where errors go."""
    import os
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run decides when to stop
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        job: Job = pickle.load(sys.stdin.buffer)
        _answer(job, sys.stdin.buffer, answers)


def _answer(job: Job, questions: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        tasks: list[Task] = pickle.load(questions)
        pickle.dump([job.do(source, record) for source, record in tasks], answers)
        answers.flush()
