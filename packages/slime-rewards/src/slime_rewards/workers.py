"""A few processes that decide what plain comparison cannot, each within a time limit."""

import asyncio
import json
import logging
import os
import queue
import select
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from slime_rewards.math import settle

logger = logging.getLogger(__name__)

_START_UP_S = 120.0
_LARGEST_BYTES = 1 << 20


class MathWorkers:
    """Grades answers without ever stalling its caller; starts processes when first needed.

    An answer that takes longer than ``time_limit_s`` is wrong, and its process is replaced.
    """

    def __init__(self, *, num_workers: int | None = None, time_limit_s: float = 5.0) -> None:
        count = num_workers or max(1, min(8, (os.cpu_count() or 2) // 2))
        self._limit = time_limit_s
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="math-worker")
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    async def grade(self, response: str, label: str) -> float:
        """1 for a right answer, else 0."""
        verdict = settle(response, label)
        if verdict is not None:
            return verdict
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._ask, response, label)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                worker.stop()

    def _ask(self, response: str, label: str) -> float:
        worker = self._idle.get()
        verdict: float | None = None
        try:
            if worker is not None and not worker.alive:
                worker.stop()
                worker = None
            worker = worker or _Worker()
            verdict = worker.ask(response, label, self._limit)
        except (TimeoutError, OSError) as error:
            logger.info("no verdict on an answer to %.80r: %s", label, error)
            if worker is not None:
                worker.stop()
            worker = None
        finally:
            self._idle.put(worker)
        return verdict or 0.0


class _Worker:
    """One process; used by one thread at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "slime_rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.ask("1", "x", _START_UP_S)
        except BaseException:
            self.stop()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def ask(self, response: str, label: str, seconds: float) -> float | None:
        """The verdict; None where the library gave up.

        Raises:
            TimeoutError: it took too long; the process is of no more use.
            OSError: it is gone.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([response[-_LARGEST_BYTES:], label, seconds]).encode() + b"\n")
        stdin.flush()
        deadline = time.monotonic() + seconds
        answer = b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"not decided within {seconds:g} s")
            read = os.read(stdout.fileno(), 4096)
            if not read:
                raise BrokenPipeError("the worker process ended")
            answer += read
        return json.loads(answer)

    def stop(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    logger.debug("input of a worker process was lost")
