"""User functions that take over a whole rollout, a whole evaluation, or what is logged of them.

They have upstream's signatures::

    generate_rollout(args, rollout_id, data_source, evaluation=False) -> RolloutFnTrainOutput
    log_rollout(rollout_id, args, samples, extra_metrics, rollout_time) -> bool
    log_eval_rollout(rollout_id, args, data, extra_metrics) -> bool
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

from slime_core.config.flat import Flat, FlatArgs
from slime_core.errors import PluginError
from slime_core.interfaces import PromptSource
from slime_core.plugins.forms import require
from slime_core.plugins.functions import load_hook
from slime_core.types import Sample, SampleGroup

Metrics = dict[str, float]
Rollout = Callable[[int, PromptSource], tuple[list[SampleGroup], Metrics]]
Evaluation = Callable[[int, PromptSource], tuple[dict[str, dict[str, Any]], Metrics]]


@dataclass
class RolloutFnTrainOutput:
    """Groups of one iteration, each a list of samples; a sample may be a list of its segments."""

    samples: list[Any]
    metrics: dict[str, Any] | None = None


@dataclass
class RolloutFnEvalOutput:
    """Name of a set -> its ``rewards`` and, if there are any, ``truncated`` and ``samples``."""

    data: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    metrics: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class EvalResult:
    """An evaluation: what was found of every set, and metrics of all of them."""

    data: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, float]


class DataSourceView:
    """What a rollout function sees of the prompts: lists of samples instead of groups."""

    def __init__(self, source: PromptSource) -> None:
        self._source = source

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """The next ``num_samples`` groups of pending samples."""
        return [list(group.samples) for group in self._source.take(num_samples)]

    def add_samples(self, samples: Sequence[Sequence[Sample]]) -> None:
        """Give groups back, or groups of its own, to be taken first."""
        self._source.add([_group("add_samples", group) for group in samples])


def rollout_function(spec: str, flat: Flat) -> Rollout:
    """``--rollout-function-path``, called with ``evaluation=False``; it may return bare lists.

    Raises:
        PluginError: it cannot be loaded or has another signature; when called: what it returned is
            not finished groups.
    """
    call = _loaded("rollout_function_path", spec, flat)

    def generate(iteration: int, source: PromptSource) -> tuple[list[SampleGroup], Metrics]:
        source.begin(iteration)
        found = call(iteration, DataSourceView(source), evaluation=False)
        rows = getattr(found, "samples", found)
        if not isinstance(rows, list) or not rows:
            raise PluginError(
                f"plugin {spec!r} must return a list of groups, or RolloutFnTrainOutput, "
                f"but returned {found!r:.80}"
            )
        groups = [_group(spec, row) for row in cast("list[Any]", rows)]
        groups.sort(key=lambda group: group.group_index)
        source.ledger.conclude(groups, "rollout_function")
        source.settle()
        return groups, {**source.metrics(), **_numbers(getattr(found, "metrics", None))}

    return generate


def eval_function(spec: str, flat: Flat) -> Evaluation:
    """``--eval-function-path``, called with ``evaluation=True``.

    Raises:
        PluginError: as ``rollout_function``.
    """
    call = _loaded("eval_function_path", spec, flat)

    def evaluate(iteration: int, source: PromptSource) -> tuple[dict[str, dict[str, Any]], Metrics]:
        found = call(iteration, DataSourceView(source), evaluation=True)
        data = getattr(found, "data", found)
        if not isinstance(data, Mapping) or not all("rewards" in row for row in data.values()):
            raise PluginError(
                f"plugin {spec!r} must return {{set: {{'rewards': [...]}}}}, or "
                f"RolloutFnEvalOutput, but returned {found!r:.80}"
            )
        sets = {str(name): dict(row) for name, row in cast("Any", data).items()}
        return sets, _numbers(getattr(found, "metrics", None))

    return evaluate


def eval_metrics(data: Mapping[str, Mapping[str, Any]]) -> Metrics:
    """eval/{set} and eval/{set}-truncated_ratio of what an evaluation function returned."""
    found: Metrics = {}
    for name, row in data.items():
        rewards = [float(reward) for reward in row["rewards"]]
        found[f"eval/{name}"] = fmean(rewards) if rewards else 0.0
        truncated = row.get("truncated")
        if truncated is not None and len(truncated):
            found[f"eval/{name}-truncated_ratio"] = fmean(map(float, truncated))
    return found


def log_function(field_name: str, spec: str, flat: Flat) -> Callable[..., bool]:
    """A function that logs in place of the run, if it returns True; given (rollout_id, ...).

    Raises:
        PluginError: it cannot be loaded or takes other arguments.
    """
    fn = load_hook(field_name, spec)
    require(field_name, spec, fn)

    def log(iteration: int, *rest: Any) -> bool:
        return bool(fn(iteration, FlatArgs(flat), *rest))

    return log


def _loaded(field_name: str, spec: str, flat: Flat) -> Callable[..., Any]:
    fn = load_hook(field_name, spec)
    require(field_name, spec, fn)

    def call(iteration: int, view: DataSourceView, *, evaluation: bool) -> Any:
        known = "evaluation" in inspect.signature(fn).parameters
        return fn(FlatArgs(flat), iteration, view, **({"evaluation": evaluation} if known else {}))

    return call


def _group(spec: str, row: Any) -> SampleGroup:
    samples = tuple(_flat(spec, row))
    indices = {sample.group_index for sample in samples}
    (index,) = indices if len(indices) == 1 else (None,)
    if index is None:
        raise PluginError(
            f"plugin {spec!r}: the samples of a group share one group_index, found "
            f"{sorted(map(str, indices))}: return the groups that get_samples gave"
        )
    for sample in samples:
        sample.validate()
    return SampleGroup(index, samples)


def _flat(spec: str, row: Any) -> Iterator[Sample]:
    """Samples of a group; those of a nested list are segments of one execution."""
    if not isinstance(row, Sequence) or not row:
        raise PluginError(f"plugin {spec!r}: a group is a list of samples, not {row!r:.60}")
    for item in cast("Sequence[Any]", row):
        if isinstance(item, Sample):
            yield item
            continue
        segments = list(_flat(spec, item))
        shared = {segment.rollout_id for segment in segments}
        if len(shared) != 1 or None in shared:
            raise PluginError(
                f"plugin {spec!r}: segments of one execution share a rollout_id, found {shared}"
            )
        yield from segments


def _numbers(metrics: Mapping[str, Any] | None) -> Metrics:
    return {name: float(value) for name, value in (metrics or {}).items()}
