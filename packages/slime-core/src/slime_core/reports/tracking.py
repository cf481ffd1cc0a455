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
from slime_core.files.aside import set_aside
from slime_core.files.durable import replace_file
from slime_core.interfaces import Beginning, Metrics, Rewinding, Tracker

logger = logging.getLogger(__name__)

NUM_DROPPED = "perf/num_dropped_trackers"
"""Metric: trackers that failed, and get nothing any more."""


class JsonlTracker:
    """Appends one JSON object per call, ``step`` and ``time`` first; readable during the run.

    Every method raises ``TrackingError`` when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begun = False
        self._file: TextIO | None = None
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def begin(self, at: Beginning) -> None:
        """Leave every step in the file once, and one run: other rows move to another file.

        Steps that are made again go to ``<name>-repeated``, those of another run to ``<name>-1``.
        """
        goes_on, self._begun = at.goes_on or self._begun, True
        assert self._file is not None, "opened when it was made"
        with self._explained():
            if not self._path.is_file() or not self._path.stat().st_size:
                return
            self._file.close()
            if goes_on:
                _move_repeated(self._path, at)
            else:
                at.say(f"numbers of an earlier run are now in {set_aside(self._path)}")
            self._file = self._path.open("a", encoding="utf-8")

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

    def begin(self, at: Beginning) -> None:
        """Tell those of them that can take back what they have."""
        for tracker in tuple(self._trackers):
            if isinstance(tracker, Rewinding):
                with self._dropping(tracker):
                    tracker.begin(at)

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


def _move_repeated(path: Path, at: Beginning) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _stays(line, at)]
    if len(kept) == len(lines):
        return
    with path.with_stem(f"{path.stem}-repeated").open("a", encoding="utf-8") as file:
        file.writelines(f"{line.strip()}\n" for line in lines if not _stays(line, at))
    replace_file(path, "".join(kept))


def _stays(line: str, at: Beginning) -> bool:
    """Whether a row is not made again; the evaluation after a step has the number of the next."""
    try:
        row = json.loads(line)
        step = int(row["step"])
    except (ValueError, KeyError, TypeError):  # a killed run wrote a part of it
        return False
    evaluated = any(name.startswith("eval/") for name in row)
    return step < at.step or (step == at.step and evaluated and not at.evaluates)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
