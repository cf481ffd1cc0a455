"""Where metrics go: a file of JSON lines, nowhere, or several places."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from slime_core.interfaces import Metrics, Tracker


class JsonlTracker:
    """Appends one JSON object per call, ``step`` and ``time`` first; readable during the run."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Metrics) -> None:
        """Write ``metrics`` and flush; NaN and infinity become null, as JSON has neither."""
        values = {name: _number(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class NullTracker:
    """Forgets everything."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Fanout:
    """Tells every tracker, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def log(self, step: int, metrics: Metrics) -> None:
        """Pass ``metrics`` on."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        """Close all of them."""
        for tracker in self._trackers:
            tracker.close()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
