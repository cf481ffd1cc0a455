"""An event loop that goes on between the calls of those who wait for it."""

import asyncio
import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Coroutine
from concurrent.futures import wait
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
_END_S = 30.0
_HELD_S = 10.0
"""After so long a loop that does not answer is told of: somebody waits in it without ``await``."""
_MOST_FRAMES = 12
_ASYNCIO = Path(asyncio.__file__).parent


class EventLoop:
    """Runs in a thread of its own; tasks that a call leaves behind go on."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self._held = _Held(self._loop, self._thread)

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
                self._held.look()
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


class _Held:
    """Notices that a loop is held by a function that waits in it; tells of it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        self._loop, self._thread = loop, thread
        self._answered, self._asked_at, self._told = True, 0.0, False

    def look(self) -> None:
        """Ask whether it goes on; called now and then, from another thread."""
        now = time.monotonic()
        if self._answered:
            self._answered, self._asked_at = False, now
            self._loop.call_soon_threadsafe(self._answer)
        elif now - self._asked_at > _HELD_S and not self._told:
            self._told = True
            logger.warning(
                "a function holds the event loop of %s for more than %g s, and all else in it "
                "waits: let it await what takes long (an asynchronous client, asyncio.sleep), or "
                "give that to asyncio.to_thread. It is at\n%s",
                self._thread.name,
                _HELD_S,
                self._where(),
            )

    def _answer(self) -> None:
        self._answered = True

    def _where(self) -> str:
        """The lines that the loop is at, from the first that is not the loop's own."""
        frames_of = sys._current_frames()  # pyright: ignore[reportPrivateUsage] -- its only name
        frame = frames_of.get(self._thread.ident or 0)
        frames = [] if frame is None else traceback.extract_stack(frame)
        kept = list(itertools.dropwhile(_is_of_the_loop, frames))[:_MOST_FRAMES]
        return "".join(traceback.format_list(kept)).rstrip()


def _is_of_the_loop(frame: traceback.FrameSummary) -> bool:
    return frame.filename == threading.__file__ or Path(frame.filename).parent == _ASYNCIO


async def _wind_up() -> None:
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), _END_S)
    await loop.shutdown_asyncgens()
    await asyncio.wait_for(loop.shutdown_default_executor(), _END_S)
