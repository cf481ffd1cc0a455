"""Run a command undisturbed, and again with a fault; say what became of it."""

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slime_core.drill.attempt import (
    Attempt,
    Event,
    Hit,
    attempt,
    newest_process,
    phase_begun,
    strike,
    usual_lengths,
)
from slime_core.drill.plan import Cell
from slime_core.drill.trained import Outcome, compare, outcome
from slime_core.processes.events import FILE_NAME, read_events

FINISHED, HUNG, ABSENT = "finished", "no end", "no such process"
_LOG = "output.log"
_ABOUT = "undisturbed.json"
DRIVER_PAUSE_S = 10.0
"""How long a driver stays stopped: nobody watches it, so it is continued from outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one disturbed run; None where a question does not arise."""

    kind: str
    fault: str
    phase: str
    ended: str
    detected_s: float | None = None
    recovered_s: float | None = None
    samples_lost: int | None = None
    samples_duplicated: int | None = None
    samples_with_other_tokens: int | None = None
    weights_equal: bool | None = None
    seconds: float = 0.0
    kills: int | None = None
    kills_by_phase: dict[str, int] | None = None
    """What the driver was doing when it was killed."""
    faults_in_run: int | None = None
    """More than one where all faults of a kind shared a run, and what came of it."""

    @property
    def failed(self) -> bool:
        """Anything else than a finished run with the same samples; nothing was tried on nobody.

        Other tokens and weights alone are none: only a deterministic command promises them.
        """
        return self.ended != FINISHED or bool(self.samples_lost or self.samples_duplicated)


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The run that the others are compared with."""

    seconds: float
    start_s: float
    outcome: Outcome
    lengths: dict[str, float] = field(default_factory=dict[str, float])
    """Usual seconds of every phase."""


@dataclass(frozen=True, slots=True)
class Drill:
    """A command and where its runs go; ``limit_s`` bounds every start of it."""

    words: tuple[str, ...]
    directory: Path
    limit_s: float

    def command(self, name: str) -> tuple[str, ...]:
        """The command of one run, with everything it writes below a directory of its own."""
        return (*self.words, *run_flags(self.directory / name, self.words))

    def clear(self, name: str) -> None:
        """Remove what an earlier drill left of the run ``name``; nothing else."""
        run = self.directory / name
        if (run / _LOG).exists():
            shutil.rmtree(run)

    def start(self, name: str) -> AbstractContextManager[Attempt]:
        """Start the run ``name``, anew or where it stopped."""
        run = self.directory / name
        return attempt(self.command(name), run / FILE_NAME, run / _LOG)


def run_flags(run: Path, given: Sequence[str]) -> list[str]:
    """What the drill adds to a command; it saves after every iteration unless told otherwise."""
    flags = {
        "--output-dir": run,
        "--save": run / "checkpoints",
        "--save-hf": run / "hf",
        "--save-debug-rollout-data": run / "rollouts" / "{rollout_id}.pt",
    }
    words = [word for flag, value in flags.items() for word in (flag, str(value))]
    return words if "--save-interval" in given else [*words, "--save-interval", "1"]


def run_undisturbed(drill: Drill) -> Undisturbed:
    """Run to the end, unless the same command has; raises ``RuntimeError`` when it fails."""
    name = "undisturbed"
    command, run = [*drill.command(name)], drill.directory / name
    if (kept := _kept(run, command)) is not None:
        return kept
    drill.clear(name)
    with drill.start(name) as running:
        begun = running.wait_for_loop(drill.limit_s)
        start_s = time.time() - running.started
        ended = ending(running, drill.limit_s)
        if not begun or ended != FINISHED:
            log = run / _LOG
            raise RuntimeError(f"the undisturbed run: {ended}; see {log}")
        seconds = time.time() - running.started
    about = {"command": command, "seconds": seconds, "start_s": start_s}
    (run / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    return _found(run, about)


def _kept(run: Path, command: list[str]) -> Undisturbed | None:
    """What an earlier drill has found for the same command."""
    path = run / _ABOUT
    if not path.is_file():
        return None
    about = json.loads(path.read_text(encoding="utf-8"))
    return _found(run, about) if about["command"] == command else None


def _found(run: Path, about: Mapping[str, Any]) -> Undisturbed:
    lengths = usual_lengths(read_events(run / FILE_NAME))
    return Undisturbed(about["seconds"], about["start_s"], outcome(run), lengths)


def try_cell(drill: Drill, cell: Cell, undisturbed: Undisturbed) -> Row:
    """One run with one fault; a driver that was killed is started again."""
    begin = time.time()
    drill.clear(cell.name)
    with drill.start(cell.name) as running:
        hit = _hit(running, cell, drill.limit_s)
        if hit is None:
            ended = ABSENT if running.exit_code is None else ending(running, 0.0)
            return _row(cell, ended, seconds=time.time() - begin)
        if cell.kind == "driver":
            go_on(running, cell)
        ended = ending(running, drill.limit_s)
        detected, recovered = reaction(running.events, cell.kind, hit)
    if cell.kind == "driver" and cell.fault == "KILL":
        with drill.start(cell.name) as running:
            if running.wait_for_loop(drill.limit_s):
                recovered = time.time() - hit.time
            ended = ending(running, drill.limit_s)
    row = _row(cell, ended, seconds=time.time() - begin)
    found = outcome(drill.directory / cell.name)
    return judged(row, undisturbed.outcome, found, detected_s=detected, recovered_s=recovered)


def reaction(events: Sequence[Event], kind: str, hit: Hit) -> tuple[float | None, float | None]:
    """Seconds from the signal to the loss being recorded, and from there to the recovery."""
    after = [event for event in events if event["time"] >= hit.time]
    losses = [event for event in after if event["event"] == "lost"]
    exact = [event for event in losses if event["pid_lost"] == hit.pid]
    lost = next(iter(exact or losses), None)
    if lost is None:
        return None, None
    detected = lost["time"] - hit.time
    later = (e for e in after if e["event"] == "recovered" and e["time"] >= lost["time"])
    back = next((event for event in later if event["kind"] in (kind, lost["kind"])), None)
    return detected, None if back is None else back["time"] - lost["time"]


def _hit(running: Attempt, cell: Cell, limit_s: float) -> Hit | None:
    """Strike in the first phase of this name from the second iteration on."""

    def due() -> bool:
        events = running.events
        there = cell.kind == "driver" or newest_process(events, cell.kind) is not None
        return there and phase_begun(events, cell.phase, first=1) is not None

    def passed() -> bool:
        return phase_begun(running.events, cell.phase, first=3) is not None

    running.wait(lambda: due() or passed(), limit_s)
    return strike(running, cell) if running.exit_code is None else None


def go_on(running: Attempt, cell: Cell) -> None:
    """End or continue a driver that was struck: nobody else would."""
    if cell.fault == "STOP":
        running.finish(DRIVER_PAUSE_S)
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGCONT)
    else:
        running.kill()


def ending(running: Attempt, seconds: float) -> str:
    """How the command ended, waiting for that no longer than ``seconds``."""
    if not running.finish(seconds):
        return HUNG
    if running.exit_code == 0:
        return FINISHED
    reasons = [event["reason"] for event in running.events if event["event"] == "gave_up"]
    return f"gave up: {reasons[-1]}" if reasons else f"exit code {running.exit_code}"


def _row(cell: Cell, ended: str, *, seconds: float) -> Row:
    return Row(
        kind=cell.kind,
        fault=cell.fault,
        phase=cell.phase,
        ended=ended,
        seconds=round(seconds, 1),
    )


def judged(
    row: Row,
    expected: Outcome,
    found: Outcome,
    *,
    detected_s: float | None = None,
    recovered_s: float | None = None,
) -> Row:
    """The row with its times, and with the comparison where the run has finished."""
    times = {"detected_s": detected_s, "recovered_s": recovered_s}
    row = replace(row, **{k: None if s is None else round(s, 2) for k, s in times.items()})
    if row.ended != FINISHED:
        return row
    apart = compare(expected, found)
    return replace(
        row,
        samples_lost=apart.lost,
        samples_duplicated=apart.duplicated,
        samples_with_other_tokens=apart.other_tokens,
        weights_equal=apart.weights_equal,
    )
