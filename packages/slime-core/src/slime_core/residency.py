"""Who occupies the devices while the other side works.

A side that holds ``everything`` can do all its work. With its ``weights`` alone it can be published
from or to. With ``nothing`` it waits, and its memory is free for the other side.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal, Protocol, runtime_checkable

from slime_core.config.cluster import ClusterConfig

Holding = Literal["nothing", "weights", "everything"]
_LESS_TO_MORE: tuple[Holding, ...] = ("nothing", "weights", "everything")


@runtime_checkable
class Side(Protocol):
    """The trainer or the engines."""

    def hold(self, what: Holding) -> float | None:
        """Keep so much in device memory; the bytes that host memory holds for it, if any."""
        ...


class SideBySide:
    """Trainer and engines keep what they hold: separate devices, or one that fits both."""

    @contextmanager
    def training(self, *, publishes: bool = True) -> Generator[None]:
        """Nothing to move."""
        yield

    @contextmanager
    def publishing(self) -> Generator[None]:
        """Nothing to move."""
        yield

    def spent(self) -> dict[str, float]:
        """Nothing moved."""
        return {}


class TakingTurns:
    """Trainer and engines share devices; each makes room while the other works.

    | while      | trainer    | engines    |
    |------------|------------|------------|
    | generating | nothing    | everything |
    | training   | everything | nothing    |
    | publishing | weights    | weights    |

    Whoever gives memory back does so before the other takes it. A side that is None keeps what it
    holds. Begins with a trainer that holds nothing and engines that hold everything.
    """

    def __init__(
        self,
        trainer: Side | None,
        engines: Side | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sides = {"trainer": trainer, "engines": engines}
        self._holding: dict[str, Holding] = {"trainer": "nothing", "engines": "everything"}
        self._clock = clock
        self._spent: dict[str, float] = {}

    @classmethod
    def of(cls, cluster: ClusterConfig, trainer: Side, engines: Side) -> "TakingTurns":
        """With the sides that --offload-train and --offload-rollout name."""
        return cls(
            trainer if cluster.offload_train else None, engines if cluster.offload_rollout else None
        )

    @contextmanager
    def training(self, *, publishes: bool = True) -> Generator[None]:
        """The trainer has the devices inside the block, and after it where a publish follows."""
        self._turn(trainer="everything", engines="nothing")
        yield
        if not publishes:
            self._turn(trainer="nothing", engines="everything")

    @contextmanager
    def publishing(self) -> Generator[None]:
        """Both hold their weights inside the block; the engines have the devices after it."""
        self._turn(trainer="weights", engines="weights")
        yield
        self._turn(trainer="nothing", engines="everything")

    def spent(self) -> dict[str, float]:
        """Seconds since the last call, and the host memory that was last needed.

        perf/offload_s, perf/onload_s: the trainer's; perf/release_s, perf/resume_s: the engines'.
        """
        spent, self._spent = self._spent, {}
        return spent

    def _turn(self, **wanted: Holding) -> None:
        changes = {
            name: _LESS_TO_MORE.index(what) - _LESS_TO_MORE.index(self._holding[name])
            for name, what in wanted.items()
        }
        for name in sorted(changes, key=changes.__getitem__):
            side = self._sides[name]
            if side is not None and changes[name]:
                self._move(name, side, wanted[name], shrinks=changes[name] < 0)
            self._holding[name] = wanted[name]

    def _move(self, name: str, side: Side, what: Holding, *, shrinks: bool) -> None:
        begin = self._clock()
        in_host = side.hold(what)
        away, back = ("offload", "onload") if name == "trainer" else ("release", "resume")
        key = f"perf/{away if shrinks else back}_s"
        self._spent[key] = self._spent.get(key, 0.0) + self._clock() - begin
        if in_host and shrinks:
            self._spent["perf/offload_host_bytes"] = in_host
