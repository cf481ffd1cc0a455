"""An event loop that goes on between the calls of those who wait for it."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import wait
from typing import Any

_LOOK_S = 1.0
_END_S = 30.0


class EventLoop:
    """Runs in a thread of its own; tasks that a call leaves behind go on."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns or raises; it bounds itself, or whoever called this does.

        Raises:
            RuntimeError: something that ran in the loop ended its thread.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while not wait([future], timeout=_LOOK_S).done:
                if not self._thread.is_alive():
                    raise RuntimeError(f"the thread {self._thread.name!r} has ended")
            return future.result()  # waits: is done
        finally:
            future.cancel()

    def close(self) -> None:
        """Cancel what still runs, and end the thread."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_END_S)
        if not self._thread.is_alive():  # it may be stuck in what it runs
            self._loop.run_until_complete(_wind_up())
            self._loop.close()


async def _wind_up() -> None:
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), _END_S)
    await loop.shutdown_asyncgens()
    await asyncio.wait_for(loop.shutdown_default_executor(), _END_S)
