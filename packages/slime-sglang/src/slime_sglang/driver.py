"""Collect the groups of one iteration: oversample, filter, abort or carry on what is not needed."""

import asyncio
import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from slime_core.data.buffer import restarted
from slime_core.data.filters import DynamicFilterOutput
from slime_core.errors import EngineError, SlimeError
from slime_core.interfaces import PromptSource
from slime_core.scores import WHERE, is_ungraded, never_generated
from slime_core.types import Sample, SampleGroup

from slime_sglang.flight import Flight, Task
from slime_sglang.groups import GroupWorker
from slime_sglang.transcript import PREFIX_CACHE

_CHECK_S = 1.0
_ABORT_S = 120.0
_UNGRADED = "ungraded"
_STARTED = "start_rollout_id"

Verdict = Callable[[Sequence[Sample]], DynamicFilterOutput]
ShowProgress = Callable[[int, int, Mapping[str, float]], None]
"""(groups or samples done, of how many, running statistics)."""


class GenerationError(SlimeError, RuntimeError):
    """Nothing of a rollout could be generated; the message has the first failure."""


class Abortable(Protocol):
    """What the driver needs of ``Generation`` besides generating."""

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
    show: ShowProgress | None = None


@dataclass(frozen=True, slots=True)
class Collected:
    """The groups of an iteration in order, everything that finished, and metrics."""

    groups: list[SampleGroup]
    every_group: list[SampleGroup]
    metrics: dict[str, float]


@dataclass(slots=True)
class _State:
    """Books of one collection."""

    accepted: list[SampleGroup] = field(default_factory=list[SampleGroup])
    spare: list[tuple[SampleGroup, str]] = field(default_factory=list[tuple[SampleGroup, str]])
    """Dropped groups that may fill a short batch, and why they were dropped."""
    every: list[SampleGroup] = field(default_factory=list[SampleGroup])
    unfinished: list[SampleGroup] = field(default_factory=list[SampleGroup])
    drops: Counter[str] = field(default_factory=Counter[str])
    num_surplus: int = 0


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
        DataError: a prompt that was given out is not accounted for.
    """
    began = time.monotonic()
    source.begin(spec.iteration)
    state, flight = _State(), Flight() if flight is None else flight
    try:
        while not _is_full(state, spec):
            if wanted := _num_wanted(state, flight, spec):
                _start(flight, source.take(wanted), worker, spec)
            if not flight:
                _accept_spare(state, spec)
                break
            for task in await _next(flight, generation):
                if spec.in_time is None or not _is_full(state, spec):
                    _judge(state, flight.land(task), worker, spec)
            _show(state, spec, began)
            _check_generated(state, spec)
        if spec.in_time is None:
            await _finish_rest(state, flight, worker, generation, spec)
    except BaseException:
        await flight.cancel()
        raise
    source.give_back(_returned(state.unfinished, spec))
    groups = sorted(state.accepted, key=lambda group: group.group_index)
    every = sorted(state.every, key=lambda group: group.group_index)
    metrics = _metrics(state, groups, spec)
    source.ledger.train(groups)
    source.ledger.filter(state.drops | {"surplus": state.num_surplus})
    source.ledger.in_flight = len(flight)
    source.settle()
    return Collected(groups, every, {**metrics, **source.metrics()})


def _is_full(state: _State, spec: CollectSpec) -> bool:
    return len(state.accepted) >= spec.num_groups


def _num_wanted(state: _State, flight: Flight, spec: CollectSpec) -> int:
    """How many groups to take now."""
    known = len(state.accepted) + len(flight)
    if spec.in_time is None:
        enough = known + len(state.spare) >= spec.num_groups
        return 0 if enough else spec.num_groups_at_once
    room = max(0, spec.num_groups_at_once - flight.num_running)
    for wanted in range(room):
        later = (known + wanted) // spec.num_groups
        if later and not spec.in_time(spec.iteration + later):
            return wanted
    return room


def _start(
    flight: Flight, groups: Sequence[SampleGroup], worker: GroupWorker, spec: CollectSpec
) -> None:
    for group in groups:
        begun_from = group if spec.in_time is None else copy.deepcopy(restarted(group))
        flight.start(worker.finish(group, iteration=spec.iteration), begun_from)


async def _next(flight: Flight, generation: Abortable) -> list[Task]:
    """Those that are done within about a second, by group; none if the wait was in vain."""
    done, _ = await asyncio.wait(
        flight.tasks, timeout=_CHECK_S, return_when=asyncio.FIRST_COMPLETED
    )
    generation.check_alive()
    failures = [error for task in done if (error := task.exception()) is not None]
    if failures:
        raise failures[0]
    return sorted(done, key=lambda task: flight.tasks[task].group_index)


def _judge(state: _State, group: SampleGroup, worker: GroupWorker, spec: CollectSpec) -> None:
    if worker.is_unfinished(group):
        state.unfinished.append(group)
        return
    state.every.append(group)
    if _is_full(state, spec):
        state.num_surplus += 1
        return
    if is_ungraded(group.samples):
        state.drops[_UNGRADED] += 1
        return
    verdict = DynamicFilterOutput(keep=True) if spec.keep is None else spec.keep(group.samples)
    reason = verdict.reason or "filtered"
    if verdict.keep:
        state.accepted.append(group)
    elif verdict.keep_when_insufficient:
        state.spare.append((group, reason))
    else:
        state.drops[reason] += 1


def _check_generated(state: _State, spec: CollectSpec) -> None:
    """Stop a run that has nothing to train on; what is dropped for it would be drawn forever."""
    enough = len(state.every) >= spec.num_groups
    if not enough or not all(never_generated(group.samples) for group in state.every):
        return
    samples = [sample for group in state.every for sample in group.samples]
    if not samples:
        return
    about = samples[0].metadata
    problems = [about.get("error", "it came back with the status `failed`"), about.get(WHERE)]
    raise GenerationError(
        f"all {len(samples)} samples of rollout {spec.iteration} failed while they were "
        "generated: there is nothing to train on. The first one:\n"
        + "\n".join(str(problem) for problem in problems if problem)
    )


def _accept_spare(state: _State, spec: CollectSpec) -> None:
    """Groups that were dropped, rather than another round of generation for a short batch."""
    num_groups = spec.num_groups - len(state.accepted)
    state.accepted += [group for group, _ in state.spare[:num_groups]]
    del state.spare[:num_groups]


async def _finish_rest(
    state: _State, flight: Flight, worker: GroupWorker, generation: Abortable, spec: CollectSpec
) -> None:
    """Abort what still runs and wait until it has ended."""
    deadline = time.monotonic() + _ABORT_S
    while flight:
        await generation.abort()
        for task in await _next(flight, generation):
            _judge(state, flight.land(task), worker, spec)
        if time.monotonic() > deadline:
            raise EngineError(f"{len(flight)} groups did not end {_ABORT_S:.0f} s after the abort")


def _returned(groups: Sequence[SampleGroup], spec: CollectSpec) -> list[SampleGroup]:
    ordered = sorted(groups, key=lambda group: group.group_index)
    if not spec.partial_rollout:
        return [restarted(group) for group in ordered]
    for group in ordered:
        for sample in group.samples:
            sample.metadata.setdefault(_STARTED, spec.iteration)
    return ordered


def _show(state: _State, spec: CollectSpec, began: float) -> None:
    if spec.show is None:
        return
    samples = [sample for group in state.every for sample in group.samples]
    spec.show(len(state.accepted), spec.num_groups, running_statistics(samples, began))


def running_statistics(samples: Sequence[Sample], began: float) -> dict[str, float]:
    """What a progress bar shows: mean reward and length so far, tokens per second."""
    if not samples:
        return {}
    lengths = [sample.response_length for sample in samples]
    scores = [float(s.reward) for s in samples if isinstance(s.reward, int | float)]
    seconds = max(1e-9, time.monotonic() - began)
    found = {"response_len": sum(lengths) / len(samples), "tok/s": sum(lengths) / seconds}
    return found | ({"reward": sum(scores) / len(scores)} if scores else {})


def _metrics(state: _State, groups: Sequence[SampleGroup], spec: CollectSpec) -> dict[str, float]:
    state.drops.update(reason for _, reason in state.spare)
    samples = [sample for group in groups for sample in group.samples]
    metrics = {
        f"rollout/dynamic_filter/drop_{reason}": float(n) for reason, n in state.drops.items()
    }
    metrics["rollout/num_unfinished_groups"] = float(len(state.unfinished))
    metrics["rollout/num_surplus_groups"] = float(state.num_surplus)
    begun_again = [] if spec.partial_rollout else state.unfinished
    wasted = _num_tokens(state.every) - _num_tokens(groups) + _num_tokens(begun_again)
    metrics["rollout/num_wasted_tokens"] = float(wasted)
    greedy = [group.baseline for group in groups if group.baseline is not None]
    if greedy:
        metrics["rollout/greedy_reward"] = sum(greedy) / len(greedy)
    return metrics | prefix_cache_metrics(samples)


def _num_tokens(groups: Sequence[SampleGroup]) -> int:
    return sum(sample.effective_response_length for group in groups for sample in group.samples)


def prefix_cache_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """How much of the prompts the engines already had."""
    counts: list[Any] = [s.metadata[PREFIX_CACHE] for s in samples if PREFIX_CACHE in s.metadata]
    total = sum(count["prompt_tokens"] for count in counts)
    if not total:
        return {}
    cached = sum(count["cached_tokens"] for count in counts)
    return {
        "rollout/prefix_cache_hit_rate": cached / total,
        "rollout/avg_cached_tokens_per_sample": cached / len(counts),
    }
