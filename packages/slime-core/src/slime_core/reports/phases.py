"""What a run is doing: told to its file of events, and booked as time of the trainer."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

from slime_core.processes.events import Events, Phase
from slime_core.reports.time_ledger import TimeLedger

_BOOKED = frozenset({"train", "save", "publish"})
"""In the other phases the trainer waits."""


class Phases:
    """Called as ``with phases("train", iteration):`` around each part of the loop."""

    def __init__(self, events: Events | None = None) -> None:
        self._events = events
        self._clock = TimeLedger("trainer")

    @contextmanager
    def __call__(self, name: Phase, iteration: int) -> Generator[None]:
        """One phase; it also ends when the block fails."""
        if self._events:
            self._events.phase(name, iteration, begin=True)
        books = self._clock.spending(name) if name in _BOOKED else nullcontext()
        try:
            with books:
                yield
        finally:
            if self._events:
                self._events.phase(name, iteration, begin=False)

    def shares(self) -> dict[str, float]:
        """Shares of the time since the last call; see ``TimeLedger``."""
        return self._clock.shares()
