"""Where the time of one part of a run goes; the shares add up to 1."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager


class TimeLedger:
    """Books of one owner that does one thing at a time; whatever is not booked is idleness."""

    def __init__(self, owner: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._owner, self._clock = owner, clock
        self._since = clock()
        self._spent: dict[str, float] = {}

    @contextmanager
    def spending(self, what: str) -> Generator[None]:
        """Book the block under ``what``."""
        begin = self._clock()
        try:
            yield
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + self._clock() - begin

    def shares(self) -> dict[str, float]:
        """Shares of the time since the last call, as perf/{owner}_{what}_share, and idleness."""
        now = self._clock()
        total, spent = max(now - self._since, 1e-9), self._spent
        self._since, self._spent = now, {}
        idle = max(0.0, total - sum(spent.values()))
        parts = {**spent, "idle": idle}
        whole = sum(parts.values())
        return {f"perf/{self._owner}_{what}_share": s / whole for what, s in parts.items()}
