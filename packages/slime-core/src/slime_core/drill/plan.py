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


START = "start"
"""Before the loop: not one of ``PHASES``, but a driver is killed there, too."""


@dataclass(frozen=True, slots=True)
class Kill:
    """When a driver is killed, counted from its start or its first iteration."""

    phase: str
    iteration: int
    """How many iterations after the first one of this start."""
    part: float
    """How far into the phase, in parts of its usual length."""


def driver_kills(count: int, *, seed: int) -> list[Kill]:
    """``count`` moments, the same number in every phase and while starting, in random order.

    A driver is killed in the first or the second iteration after its start, so ``2 * count``
    iterations outlast them all.
    """
    draw = random.Random(seed)
    places = (START, *PHASES)
    first = draw.randrange(len(places))
    phases = [places[(first + number) % len(places)] for number in range(count)]
    draw.shuffle(phases)
    return [Kill(phase, draw.randrange(2), draw.random()) for phase in phases]
