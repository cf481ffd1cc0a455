"""Which faults are tried, and when."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from slime_core.errors import ConfigError

Fault = Literal["KILL", "STOP"]

KINDS = ("engine", "router", "reward_worker", "trainer_rank", "data_worker", "driver")
MORE_KINDS = ("rollout_worker", "critic_rank")
FAULTS: tuple[Fault, ...] = get_args(Fault)
PHASES = ("generate", "train", "publish", "save")


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault: a signal to a process of this kind when the loop has entered this phase."""

    kind: str
    fault: Fault
    phase: str

    @property
    def name(self) -> str:
        """As the directory of its run is called."""
        return f"{self.kind}-{self.fault}-{self.phase}"


def cells(kinds: Sequence[str], faults: Sequence[str], phases: Sequence[str]) -> list[Cell]:
    """Every combination, kind by kind.

    Raises:
        ConfigError: something is none of the known words.
    """
    known = {
        "--kinds": (kinds, (*KINDS, *MORE_KINDS)),
        "--signals": (faults, FAULTS),
        "--phases": (phases, PHASES),
    }
    for flag, (given, allowed) in known.items():
        if wrong := [word for word in given if word not in allowed]:
            raise ConfigError(f"{flag} {','.join(wrong)}: give some of {', '.join(allowed)}")
    signals: list[Fault] = [fault for fault in FAULTS if fault in faults]
    return [Cell(kind, fault, phase) for kind in kinds for fault in signals for phase in phases]


@dataclass(frozen=True, slots=True)
class Kill:
    """When the driver is killed: seconds after it was started, or after its loop has begun."""

    seconds: float
    in_loop: bool


def driver_kills(count: int, *, seed: int, start_s: float, loop_s: float) -> list[Kill]:
    """``count`` random moments for an undisturbed run of ``start_s`` and then ``loop_s``.

    One in four meets a run that is starting. The others are spread so that together they reach
    over the whole loop: each comes within ``2 loop_s / count`` of it, half of that on average.
    """
    draw = random.Random(seed)
    reach = 2 * loop_s / max(1, count)
    kills: list[Kill] = []
    for _ in range(count):
        in_loop = draw.random() >= 0.25
        kills.append(Kill(draw.uniform(0, reach if in_loop else start_s), in_loop))
    return kills
