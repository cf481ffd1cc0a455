"""So many at once, in whichever event loop runs."""

import asyncio


class Gate:
    """A semaphore that outlives event loops."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    def __call__(self) -> asyncio.Semaphore:
        """The semaphore of the running loop."""
        loop = asyncio.get_running_loop()
        if self._of is None or self._of[0] is not loop:
            self._of = (loop, asyncio.Semaphore(self._most))
        return self._of[1]
