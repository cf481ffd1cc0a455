"""Several faults in one run, one after another: most of a run's time is its start."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from slime_core.drill.attempt import Attempt, Event, Hit, newest_process, phase_begun, strike
from slime_core.drill.plan import Cell
from slime_core.drill.trained import Outcome, outcome
from slime_core.drill.tries import (
    ABSENT,
    FINISHED,
    Drill,
    Row,
    Undisturbed,
    ending,
    go_on,
    judged,
    reaction,
)

_PATIENCE = 3
"""Iterations after which nobody will notice a fault any more, or a process to come up."""
_NOT_TRIED = "not tried"


def num_iterations(num_cells: int) -> int:
    """Enough for so many faults."""
    return 2 * num_cells + _PATIENCE + 1


def try_in_a_row(
    drill: Drill, cells: Sequence[Cell], undisturbed: Undisturbed, say: Callable[[str], None]
) -> list[Row]:
    """One run with all of ``cells``; samples and weights are those of the run as a whole."""
    name = f"{cells[0].kind}-in-a-row"
    drill.clear(name)
    tries = _Tries(drill.limit_s, cells, say)
    ended: str | None = None
    while ended is None:
        with drill.start(name) as running:
            ended = tries.go_on(running)
    found = outcome(drill.directory / name)
    return [_judged(row, ended, undisturbed, found) for row in tries.rows]


def _judged(row: Row, ended: str, undisturbed: Undisturbed, found: Outcome) -> Row:
    if row.ended in (ABSENT, _NOT_TRIED):
        return row
    row = replace(row, ended=ended)
    times = {"detected_s": row.detected_s, "recovered_s": row.recovered_s}
    return judged(row, undisturbed.outcome, found, **times)


class _Tries:
    """What was tried, and what is left; a driver that was killed is started between."""

    def __init__(self, limit_s: float, cells: Sequence[Cell], say: Callable[[str], None]) -> None:
        self._limit_s, self._say = limit_s, say
        self._cells, self.rows = list(cells), list[Row]()
        self._first, self._since = 1, 0.0
        self._begin = time.time()

    def go_on(self, running: Attempt) -> str | None:
        """Strike until there is nothing left, and wait for the end; None to start again."""
        if self.rows:  # the driver was killed
            begun = running.wait_for_loop(self._limit_s)
            back = time.time() - self._since if begun else None
            self.rows[-1] = replace(self.rows[-1], recovered_s=back)
        while len(self.rows) < len(self._cells) and running.exit_code is None:
            cell = self._cells[len(self.rows)]
            if self._try(running, cell) and (cell.kind, cell.fault) == ("driver", "KILL"):
                running.kill()
                return None
        ended = ending(running, self._limit_s)
        left = self._cells[len(self.rows) :]
        self.rows += [self._row(cell, _NOT_TRIED) for cell in left]
        return ended

    def _try(self, running: Attempt, cell: Cell) -> bool:
        """Whether somebody was struck; its row is added."""

        def due() -> bool:
            there = cell.kind == "driver" or newest_process(running.events, cell.kind) is not None
            return there and self._begun(running.events, cell.phase, self._first)

        def passed() -> bool:
            return self._begun(running.events, cell.phase, self._first + _PATIENCE)

        running.wait(lambda: due() or passed(), self._limit_s)
        hit = strike(running, cell) if running.exit_code is None else None
        if hit is None:
            if running.exit_code is None:
                self.rows.append(self._row(cell, ABSENT))
                self._first += 1
            return False
        self._await_reaction(running, cell, hit)
        return True

    def _await_reaction(self, running: Attempt, cell: Cell, hit: Hit) -> None:
        at = _iteration(running.events)
        self._since = hit.time
        if cell.kind == "driver":
            go_on(running, cell)
        else:
            running.wait(
                lambda: (
                    reaction(running.events, cell.kind, hit)[1] is not None
                    or _iteration(running.events) > at + _PATIENCE
                ),
                self._limit_s,
            )
            self._since = time.time()
        detected, recovered = reaction(running.events, cell.kind, hit)
        row = self._row(cell, FINISHED)
        self.rows.append(replace(row, detected_s=detected, recovered_s=recovered))
        self._first = _iteration(running.events) + 1

    def _row(self, cell: Cell, ended: str) -> Row:
        now = time.time()
        seconds, self._begin = round(now - self._begin, 1), now
        self._say(f"{cell.name}: {'struck' if ended == FINISHED else ended}, {seconds} s")
        return Row(
            kind=cell.kind,
            fault=cell.fault,
            phase=cell.phase,
            ended=ended,
            seconds=seconds,
            faults_in_run=len(self._cells),
        )

    def _begun(self, events: Sequence[Event], phase: str, first: int) -> bool:
        later = [event for event in events if event["time"] >= self._since]
        return phase_begun(later, phase, first) is not None


def _iteration(events: Sequence[Event]) -> int:
    """The last one that was reached."""
    return max((event["iteration"] for event in events if event["event"] == "phase"), default=0)
