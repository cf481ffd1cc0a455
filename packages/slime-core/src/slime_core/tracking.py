"""Where metrics go: a file of JSON lines, nowhere, or several places."""

import json
import logging
import math
import os
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from slime_core.config.tracking import TrackingConfig
from slime_core.errors import TrackingError
from slime_core.interfaces import Metrics, Tracker

logger = logging.getLogger(__name__)

NUM_DROPPED = "perf/num_dropped_trackers"
"""Metric: trackers that failed, and get nothing any more."""


class JsonlTracker:
    """Appends one JSON object per call, ``step`` and ``time`` first; readable during the run.

    Every method raises ``TrackingError`` when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Metrics) -> None:
        """Write ``metrics`` and flush; NaN and infinity become null, as JSON has neither."""
        values = {name: _number(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        assert self._file is not None, "opened when it was made"
        with self._explained():
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        assert self._file is not None, "opened when it was made"
        with self._explained():
            self._file.close()

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()  # tries to write once more
            raise TrackingError(
                f"the run's numbers cannot be written to {self._path}: {error}. Make room there or "
                "choose another --output-dir; a run with --save goes on from its last checkpoint"
            ) from error


class NullTracker:
    """Forgets everything."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Fanout:
    """Tells every tracker, in order.

    One that fails is named in a warning and told nothing more, and ``NUM_DROPPED`` counts it: a run
    does not end for want of a picture. A ``TrackingError`` is of the record itself, and is raised.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)
        self._num_dropped = 0

    def log(self, step: int, metrics: Metrics) -> None:
        """Pass ``metrics`` on."""
        if self._num_dropped:
            metrics = {**metrics, NUM_DROPPED: float(self._num_dropped)}
        for tracker in tuple(self._trackers):
            with self._dropping(tracker):
                tracker.log(step, metrics)

    def close(self) -> None:
        """Close all of them."""
        for tracker in reversed(self._trackers.copy()):  # the record last: it may raise
            with self._dropping(tracker):
                tracker.close()

    @contextmanager
    def _dropping(self, tracker: Tracker) -> Generator[None]:
        try:
            yield
        except TrackingError:
            self._trackers.remove(tracker)  # whoever closes the others does not hear it again
            raise
        except Exception as error:  # of others' code: a disk, a network, a thread that died
            self._trackers.remove(tracker)
            self._num_dropped += 1
            logger.warning(
                "%s gets no numbers any more: %s: %s",
                type(tracker).__name__,
                type(error).__name__,
                error,
            )


def tensorboard_directory(config: TrackingConfig, directory: Path) -> Path:
    """``<project>/<experiment>`` if named, else ``$TENSORBOARD_DIR``, else the run's directory."""
    project = config.tb_project_name or os.environ.get("TENSORBOARD_DIR")
    if project is None:
        return directory / "tensorboard"
    return Path(project) / (config.tb_experiment_name or directory.name)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
