"""What the terminal shows: one row per iteration, and bars for what is under way."""

import sys
import time
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from slime_core.interfaces import Metrics
from slime_core.iteration_rows import evaluations, header, row
from slime_core.progress import Progress as Reading

from slime_train.loop import Cadence

_TRAINED = "train/loss"
_ROWS_PER_HEADER = 20


class Console:
    """The driver's voice; a context manager, because bars take over the last lines of a terminal.

    Where the output is no terminal there are rows and messages, and no bars.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._out = RichConsole(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.fields[note]}"),
            console=self._out,
            transient=True,
            disable=not self._out.is_terminal,
        )
        self._run: TaskID | None = None
        self._current: TaskID | None = None
        self._numbers: dict[str, float] = {}
        self._num_rows = 0
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        """Show bars from here on."""
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Give the terminal back."""
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print one message above the bars."""
        self._out.print(text, markup=False)

    def begin(self, cadence: Cadence) -> None:
        """Show how many iterations lie ahead."""
        self._since = time.monotonic()
        if self._run is not None:
            self._bars.remove_task(self._run)
            self._run = None
        if cadence.last > cadence.first:
            self._run = self._bars.add_task(
                "iterations", total=cadence.last, completed=cadence.first, note=""
            )

    def progress(self, reading: Reading | None) -> None:
        """Show how far one piece of work has come; None when it has ended."""
        if self._current is not None and reading is None:
            self._bars.remove_task(self._current)
            self._current = None
        if reading is None:
            return
        if self._current is None:
            self._current = self._bars.add_task(reading.what, total=reading.total, note="")
        self._bars.update(
            self._current,
            description=reading.what,
            total=reading.total,
            completed=reading.done,
            note=reading.note,
        )

    def log(self, step: int, metrics: Metrics) -> None:
        """Take the numbers of a stage; a row appears when an iteration has been trained."""
        self._numbers |= metrics
        accuracy = evaluations(metrics)
        if accuracy:
            self._numbers["accuracy"] = sum(accuracy.values()) / len(accuracy)
            found = ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())
            self.say(f"evaluation under weights {step}: {found}")
        if _TRAINED in metrics:
            self._row(step)

    def _row(self, iteration: int) -> None:
        now = time.monotonic()
        self._numbers["seconds"], self._since = now - self._since, now
        if self._num_rows % _ROWS_PER_HEADER == 0:
            self.say(header())
        self._num_rows += 1
        self.say(row(iteration, self._numbers))
        if self._run is not None:
            note = f"reward {self._numbers.get('rollout/raw_reward', 0.0):.3f}"
            self._bars.update(self._run, completed=iteration + 1, note=note)
