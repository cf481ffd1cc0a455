"""Functions of users, those written against upstream too, as our own contracts have them."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slime_core.config.flat import Flat, FlatArgs
from slime_core.data import selection
from slime_core.data.filters import DynamicFilterOutput
from slime_core.errors import PluginError
from slime_core.hooks.contracts import (
    DynamicFilter,
    GenerateFunction,
    RewardFunction,
    RewardPostProcess,
    RewardValue,
    SampleFilter,
    SampleHook,
)
from slime_core.plugins.forms import require, reward_arguments, takes_list
from slime_core.plugins.functions import bind, load_hook, settle
from slime_core.types import Sample


def custom_generate(
    spec: str, flat: Flat, *, given: Mapping[str, Any] | None = None
) -> GenerateFunction:
    """``async f(args, sample, sampling_params[, evaluation])``, or ``f(args, samples)``.

    Names of ``given`` that the file uses and does not define mean what is given.
    """
    fn = load_hook("custom_generate_function_path", spec)
    for name, value in (given or {}).items():
        getattr(fn, "__globals__", {}).setdefault(name, value)
    require("custom_generate_function_path", spec, fn)
    call = bind(fn, flat)
    whole_list = takes_list(fn)

    async def generate(
        sample: Sample, sampling_params: Mapping[str, Any], *, evaluation: bool
    ) -> Sample | list[Sample]:
        if not whole_list:
            return await settle(call(sample, dict(sampling_params), evaluation=evaluation))
        options = {"sampling_params": dict(sampling_params), "evaluation": evaluation}
        results: list[Sample] = await settle(call([sample], **options))
        return results[0] if len(results) == 1 else results

    return generate


async def _run_here(fn: Callable[..., Any], *arguments: Any) -> Any:
    return await settle(fn(*arguments))


def custom_reward(
    spec: str, flat: Flat, *, group: bool, run: Callable[..., Awaitable[Any]] = _run_here
) -> RewardFunction:
    """``f(args, sample, **kw)`` once per sample, or once per ``group`` with a list of samples.

    A class with ``compute_reward(prompts, responses)`` is instantiated once, with the value of
    --reward-model-path where it takes an argument. ``run(fn, *arguments)`` calls the function and
    awaits what it returns, wherever it likes.
    """
    fn = load_hook("custom_rm_path", spec)
    if inspect.isclass(fn):
        return _reward_object(spec, fn, flat.get("reward_model_path"), run)
    require("custom_rm_path", spec, fn)
    call = bind(fn, flat)

    async def per_sample(samples: Sequence[Sample]) -> list[RewardValue]:
        return [await run(call, sample) for sample in samples]

    async def per_group(samples: Sequence[Sample]) -> list[RewardValue]:
        return _one_each(spec, await run(call, list(samples)), samples)

    return per_group if group else per_sample


def _reward_object(
    spec: str, cls: type, model_path: str | None, run: Callable[..., Awaitable[Any]]
) -> RewardFunction:
    model: Any = cls(*reward_arguments(spec, cls, model_path))

    async def per_group(samples: Sequence[Sample]) -> list[RewardValue]:
        prompts, responses = [s.prompt for s in samples], [s.response for s in samples]
        return _one_each(spec, await run(model.compute_reward, prompts, responses), samples)

    return per_group


def _one_each(spec: str, found: Any, samples: Sequence[Sample]) -> list[Any]:
    """``found`` as a list of a reward per sample."""
    if isinstance(found, str | Mapping) or not hasattr(found, "__iter__"):
        raise PluginError(
            f"plugin {spec!r} must return a list of {len(samples)} rewards, one per sample, "
            f"returned {found!r:.80}"
        )
    try:
        rewards = list(found)
    except TypeError:  # an array without dimensions
        rewards = [found]
    if len(rewards) != len(samples):
        raise PluginError(
            f"plugin {spec!r} returned {len(rewards)} rewards for {len(samples)} samples"
        )
    return rewards


def dynamic_filter(spec: str, flat: Flat) -> DynamicFilter:
    """``f(args, group, **kw)`` returning a verdict, or whether to keep the group."""
    fn = load_hook("dynamic_sampling_filter_path", spec)
    require("dynamic_sampling_filter_path", spec, fn)
    call = bind(fn, flat)

    def verdict(samples: Sequence[Sample]) -> DynamicFilterOutput:
        found = call(list(samples))
        keep = _truth(getattr(found, "keep", found))
        if keep is None:
            raise PluginError(
                f"plugin {spec!r} must return True, False or DynamicFilterOutput, "
                f"returned {found!r:.80}"
            )
        return DynamicFilterOutput(
            keep=keep,
            reason=getattr(found, "reason", None if keep else "filtered"),
            keep_when_insufficient=bool(getattr(found, "keep_when_insufficient", False)),
        )

    return verdict


def _truth(value: Any) -> bool | None:
    """A truth value of Python's, NumPy's or torch's; None for anything else."""
    if isinstance(value, bool):
        return value
    if str(getattr(value, "dtype", "")) not in ("bool", "torch.bool"):
        return None
    try:
        return bool(value)
    except (ValueError, RuntimeError):  # several of them
        return None


def reward_post_process(spec: str, flat: Flat) -> RewardPostProcess:
    """``f(args, samples)`` returning raw rewards and rewards to learn from."""
    fn = load_hook("custom_reward_post_process_path", spec)
    require("custom_reward_post_process_path", spec, fn)
    call = bind(fn, flat)

    def process(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
        found = call(list(samples))
        try:
            raw, rewards = found
            return [float(x) for x in raw], [float(x) for x in rewards]
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"plugin {spec!r} must return two lists of numbers, raw rewards and rewards to "
                f"learn from, returned {found!r:.80}"
            ) from error

    return process


def sample_filter(spec: str, flat: Flat) -> SampleFilter:
    """``f(args, groups)`` that sets ``remove_sample``."""
    fn = load_hook("rollout_sample_filter_path", spec)
    require("rollout_sample_filter_path", spec, fn)
    return bind(fn, flat)


def sample_hook(spec: str, flat: Flat) -> SampleHook:
    """``f(args, sample, *, rollout_id=None, evaluation=False)``."""
    fn = load_hook("rollout_sample_hook_path", spec)
    require("rollout_sample_hook_path", spec, fn)
    call = bind(fn, flat)

    async def run(sample: Sample, *, rollout_id: int | None, evaluation: bool) -> Sample | None:
        found = await settle(call(sample, rollout_id=rollout_id, evaluation=evaluation))
        if found is not None and not isinstance(found, Sample):
            raise PluginError(
                f"plugin {spec!r} must return a Sample or None, returned {found!r:.80}"
            )
        return found

    return run


def samples_process(spec: str, flat: Flat) -> Callable[[list[list[Sample]], Any], None]:
    """--rollout-all-samples-process-path: ``f(args, all_samples, data_source)``."""
    fn = load_hook("rollout_all_samples_process_path", spec)
    require("rollout_all_samples_process_path", spec, fn)
    return bind(fn, flat)


def buffer_filter(spec: str, flat: Flat) -> Callable[[list[Any], int], list[Any]]:
    """--buffer-filter-path: ``f(args, rollout_id, buffer, num_samples)`` or without the id."""
    chosen = selection.as_select(load_hook("buffer_filter_path", spec), spec)

    def select(waiting: list[Any], num_groups: int) -> list[Any]:
        lists = [list(group.samples) for group in waiting]
        by_samples = {id(samples): group for samples, group in zip(lists, waiting, strict=True)}
        found = selection.take(chosen, lists, num_groups, args=FlatArgs(flat), rollout_id=None)
        waiting[:] = [by_samples[id(samples)] for samples in lists]
        return [by_samples[id(samples)] for samples in found]

    return select


def weight_post_write(spec: str, flat: Flat) -> Callable[[Path, Sequence[Any]], None]:
    """--custom-update-weight-post-write-path: ``f(args, version_dir, engines)``, not async."""
    fn = load_hook("custom_update_weight_post_write_path", spec)
    require("custom_update_weight_post_write_path", spec, fn)
    call = bind(fn, flat)

    def written(version_dir: Path, engines: Sequence[Any]) -> None:
        call(str(version_dir), list(engines))

    return written
