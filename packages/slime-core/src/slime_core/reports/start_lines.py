"""What the terminal shows while a run starts: a line for every step that is done."""

import time
from collections.abc import Callable
from pathlib import Path

from slime_core.processes.events import Events, News


class StartLines:
    """Tells of the steps that the processes of a run record as ``started``.

    The driver makes one when it begins to start them.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """``path``: the run's file of events; what is there already is of an earlier start."""
        self._events, self._news, self._say = Events(path), News(path), say
        self._begin = time.monotonic()

    def after(self, check: Callable[[], None]) -> Callable[[], None]:
        """``check``, which is called while the driver waits, and behind it what is new."""

        def check_and_tell() -> None:
            check()
            self._tell()

        return check_and_tell

    def done(self, what: str) -> None:
        """The driver itself has done the first step."""
        self._events.started(what, time.monotonic() - self._begin)
        self._tell()

    def ready(self, todo: str) -> None:
        """The last line: everything is up."""
        self._tell()
        self._say(f"ready after {time.monotonic() - self._begin:.1f} s; {todo}")

    def _tell(self) -> None:
        for event in self._news.read():
            if event["event"] == "started":
                self._say(line(event["what"], event["seconds"]))


def line(what: str, seconds: float) -> str:
    """One step of the start.

    >>> line("engine 1 of 2 up", 14.23)
    '  engine 1 of 2 up in 14.2 s'
    """
    return f"  {what} in {seconds:.1f} s"
