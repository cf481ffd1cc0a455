"""Collect the groups of one iteration: oversample, filter, abort or carry on what is not needed."""

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from slime_core.data.buffer import restarted
from slime_core.errors import SlimeError
from slime_core.interfaces import PromptSource
from slime_core.scores import WHERE
from slime_core.types import SampleGroup

from slime_sglang.rollout.flight import Flight, Task
from slime_sglang.rollout.groups import GroupWorker
from slime_sglang.rollout.running_statistics import RunningStatistics, ShowProgress
from slime_sglang.rollout.tally import Tally, Verdict

logger = logging.getLogger(__name__)

_CHECK_S = 1.0
_TELL_S = 60.0
"""Between two words about what is still waited for."""
_EXPECTED_BATCHES = 4
"""A filter that needs no more than these is not worth a warning."""
_STARTED = "start_rollout_id"


class GenerationError(SlimeError, RuntimeError):
    """Nothing of a rollout could be generated; the message has the first failure."""


class FilterError(SlimeError, RuntimeError):
    """Groups are dropped without end; the message has the reasons."""


class Abortable(Protocol):
    """What a collection needs of ``Generation`` besides generating."""

    check_alive: Callable[[], None]

    async def abort(self) -> None:
        """Abort all requests and let nothing new start."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectSpec:
    """How many groups, and what happens to the rest."""

    iteration: int
    num_groups: int
    num_groups_at_once: int
    """Groups fetched whenever those accepted and in flight are fewer than ``num_groups``; with
    ``in_time``, how many are kept in flight."""
    in_time: Callable[[int], bool] | None = None
    """Carry on what is unfinished to the next collection, and begin groups for it as others finish,
    if they would be young enough when that iteration is trained on."""
    partial_rollout: bool = False
    """Give unfinished groups back with what they have; otherwise they start again."""
    keep: Verdict | None = None
    max_batches: int | None = None
    """Times ``num_groups`` that may be generated; all of it dropped would go on forever."""
    show: ShowProgress | None = None


@dataclass(frozen=True, slots=True)
class Collected:
    """The groups of an iteration in order, everything that finished, and metrics."""

    groups: list[SampleGroup]
    every_group: list[SampleGroup]
    metrics: dict[str, float]


async def collect(
    source: PromptSource,
    worker: GroupWorker,
    generation: Abortable,
    spec: CollectSpec,
    flight: Flight | None = None,
) -> Collected:
    """``spec.num_groups`` finished groups that the filter keeps, sorted by group index.

    What is in ``flight`` counts; with ``spec.in_time`` something may still be when this returns.

    Raises:
        EngineError: an engine or the router died; noticed within about a second.
        GenerationError: as many groups as are wanted failed, and none did not.
        FilterError: ``spec.max_batches`` were generated, and there are still not enough groups.
        DataError: a prompt that was given out is not accounted for.
    """
    flight = Flight() if flight is None else flight
    source.begin(spec.iteration)
    collection = _Collection(source, worker, generation, spec, flight)
    try:
        await collection.fill()
        if spec.in_time is None:
            await collection.finish_rest()
    except BaseException:
        await flight.cancel()
        raise
    return collection.close()


class _Collection:
    """One call of ``collect``: groups leave the source, are in flight, and land in the tally."""

    def __init__(
        self,
        source: PromptSource,
        worker: GroupWorker,
        generation: Abortable,
        spec: CollectSpec,
        flight: Flight,
    ) -> None:
        self._source = source
        self._worker = worker
        self._generation = generation
        self._spec = spec
        self._flight = flight
        self._tally = Tally(spec.num_groups, spec.keep)
        self._statistics = RunningStatistics()
        self._told = _EXPECTED_BATCHES

    async def fill(self) -> None:
        """Begin groups, and judge those that come back, until there are enough."""
        while not self._tally.is_full:
            if wanted := self._num_wanted():
                self._start(wanted)
            if not self._flight:
                self._tally.accept_spare()
                return
            for task in await self._next():
                if self._spec.in_time is None or not self._tally.is_full:
                    self._land(task)
            self._show()
            self._check_generated()
            self._check_kept()

    async def finish_rest(self) -> None:
        """Abort what still runs and wait until it has ended.

        Requests to engines end soon; functions of the user's have deadlines of their own.
        """
        tell_at = time.monotonic() + _TELL_S
        while self._flight:
            await self._generation.abort()
            for task in await self._next():
                self._land(task)
            if self._flight and time.monotonic() > tell_at:
                tell_at += _TELL_S
                indices = sorted(group.group_index for group in self._flight.tasks.values())
                logger.warning(
                    "rollout %d has enough groups, and waits for user code that has begun others "
                    "(%s): a custom generate function ends by --custom-generate-timeout-s, a "
                    "reward by --reward-call-timeout-s",
                    self._spec.iteration,
                    ", ".join(map(str, indices)),
                )

    def close(self) -> Collected:
        """Give back what is unfinished, and settle the books."""
        source, tally = self._source, self._tally
        source.give_back(_returned(tally.unfinished, self._spec))
        begun_again = [] if self._spec.partial_rollout else tally.unfinished
        metrics = tally.metrics(begun_again=begun_again)
        source.ledger.train(tally.accepted)
        source.ledger.filter(tally.filtered)
        source.ledger.in_flight = len(self._flight)
        source.settle()
        return Collected(tally.accepted, tally.finished, {**metrics, **source.metrics()})

    def _num_wanted(self) -> int:
        """How many groups to take now."""
        spec, known = self._spec, self._tally.num_accepted + len(self._flight)
        if spec.in_time is None:
            enough = known + self._tally.num_spare >= spec.num_groups
            return 0 if enough else spec.num_groups_at_once
        room = max(0, spec.num_groups_at_once - self._flight.num_running)
        for wanted in range(room):
            later = (known + wanted) // spec.num_groups
            if later and not spec.in_time(spec.iteration + later):
                return wanted
        return room

    def _start(self, num_groups: int) -> None:
        in_turns = self._spec.in_time is None
        for group in self._source.take(num_groups):
            begun_from = group if in_turns else copy.deepcopy(restarted(group))
            work = self._worker.finish(group, iteration=self._spec.iteration)
            self._flight.start(work, begun_from)

    async def _next(self) -> list[Task]:
        """Those that are done within about a second, by group; none if the wait was in vain."""
        done, _ = await asyncio.wait(
            self._flight.tasks, timeout=_CHECK_S, return_when=asyncio.FIRST_COMPLETED
        )
        self._generation.check_alive()
        failures = [error for task in done if (error := task.exception()) is not None]
        if failures:
            raise failures[0]
        return sorted(done, key=lambda task: self._flight.tasks[task].group_index)

    def _land(self, task: Task) -> None:
        group = self._flight.land(task)
        if self._worker.is_unfinished(group):
            self._tally.unfinished.append(group)
        else:
            self._tally.add(group)
            self._statistics.add(group.samples)

    def _check_generated(self) -> None:
        """Stop a run that has nothing to train on: what is dropped would be drawn forever."""
        spec, tally = self._spec, self._tally
        if tally.was_anything_generated or tally.num_finished < spec.num_groups:
            return
        samples = [sample for group in tally.finished for sample in group.samples]
        if not samples:
            return
        about = samples[0].metadata
        problems = [about.get("error", "it came back with the status `failed`"), about.get(WHERE)]
        raise GenerationError(
            f"all {len(samples)} samples of rollout {spec.iteration} failed while they were "
            "generated: there is nothing to train on. The first one:\n"
            + "\n".join(str(problem) for problem in problems if problem)
        )

    def _check_kept(self) -> None:
        """Tell of what is dropped, batch after batch, and end a run that gets nowhere."""
        spec, tally = self._spec, self._tally
        batches = tally.num_finished // spec.num_groups
        if tally.is_full or batches <= self._told:
            return
        self._told = batches
        reasons = ", ".join(f"{reason} {n}" for reason, n in tally.filtered.most_common())
        standing = (
            f"rollout {spec.iteration}: {tally.num_accepted} of {spec.num_groups} groups are kept "
            f"of {tally.num_finished} generated; dropped: {reasons}"
        )
        if spec.max_batches is not None and batches >= spec.max_batches:
            raise FilterError(
                f"{standing}. --dynamic-sampling-max-batches {spec.max_batches} allows no more of "
                "them: look at the rewards and at --dynamic-sampling-filter-path"
            )
        logger.warning("%s", standing)

    def _show(self) -> None:
        if self._spec.show is not None:
            statistics = self._statistics.values()
            self._spec.show(self._tally.num_accepted, self._spec.num_groups, statistics)


def _returned(groups: Sequence[SampleGroup], spec: CollectSpec) -> list[SampleGroup]:
    """Unfinished groups as the next collection takes them."""
    ordered = sorted(groups, key=lambda group: group.group_index)
    if not spec.partial_rollout:
        return [restarted(group) for group in ordered]
    for group in ordered:
        for sample in group.samples:
            sample.metadata.setdefault(_STARTED, spec.iteration)
    return ordered
