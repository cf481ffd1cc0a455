"""Reward functions of the user's run beside the run's event loop, each within a deadline.

What is not asynchronous runs in a thread; what is runs in an event loop of its own, shared with
other calls as module-level HTTP sessions want it. A thread cannot be killed: one that is late is
left behind, and so is an event loop that a function has blocked.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from slime_rewards.gate import Gate

_AT_ONCE = 32
_ALIVE_S = 0.5


class Calls:
    """Calls functions; a late one costs its deadline and nothing else."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gate = Gate(_AT_ONCE)

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function`` returns, awaited if it wants to be.

        Raises:
            TimeoutError: it took too long.
        """
        late = f"a reward function gave no answer within {self._seconds:g} s"
        async with self._gate():
            try:
                value = await asyncio.wait_for(_in_thread(function, arguments), self._seconds)
            except TimeoutError as error:
                raise TimeoutError(late) from error
        if not inspect.isawaitable(value):
            return value
        loop = self._started()
        pending = asyncio.run_coroutine_threadsafe(_awaited(value), loop)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(pending), self._seconds)
        except TimeoutError as error:
            await self._leave_if_blocked(loop)
            raise TimeoutError(late) from error

    def close(self) -> None:
        """Stop the event loop, if it listens."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(self._loop,), daemon=True).start()
        return self._loop

    async def _leave_if_blocked(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up an event loop that does not answer; the next call starts another."""
        alive = asyncio.run_coroutine_threadsafe(_nothing(), loop)
        try:
            await asyncio.wait_for(asyncio.wrap_future(alive), _ALIVE_S)
        except TimeoutError:
            if self._loop is loop:
                self._loop = None


def _in_thread(function: Callable[..., Any], arguments: tuple[Any, ...]) -> "asyncio.Future[Any]":
    """A thread for one call, which does not keep the process from ending."""
    done: Future[Any] = Future()

    def work() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(function(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, name="reward", daemon=True).start()
    return asyncio.wrap_future(done)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


async def _nothing() -> None:
    return None
