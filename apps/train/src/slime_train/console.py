"""What the terminal shows: one row per iteration, and bars for what is under way."""

import sys
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as Remaining
from slime_core.interfaces import Metrics
from slime_core.reports.iteration_rows import Table
from slime_core.reports.progress import Progress as Reading

from slime_train.loop import Cadence


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
        self._table = Table()

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
        self._table.begin()
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
        for line in self._table.lines(step, metrics):
            self.say(line)
        if self._run is not None and "train/loss" in metrics:
            note = f"reward {self._table.reward:.3f}"
            self._bars.update(self._run, completed=step + 1, note=note)
