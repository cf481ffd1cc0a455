"""User functions: their contracts, and adapters for those written against upstream.

A function whose first parameter is called ``args`` gets a fresh ``FlatArgs`` there; one without it
is called without. Keyword arguments a function does not know are left out. Functions may be
``async`` or not.
"""

import ast
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from slime_core.config.flat import FlatArgs
from slime_core.data import selection
from slime_core.data.filters import DynamicFilterOutput
from slime_core.data.source import load_source
from slime_core.errors import PluginError
from slime_core.hook_forms import is_plain, require, reward_arguments, takes_args, takes_list
from slime_core.plugins import load_plugin
from slime_core.types import Sample

Flat = Mapping[str, Any]
RewardValue = float | dict[str, Any]

_NAMES = {
    "custom_generate_function_path": ("custom_generate", "generate"),
    "custom_rm_path": ("custom_rm", "reward_func", "compute_reward", "reward", "CustomRewardModel"),
    "dynamic_sampling_filter_path": ("dynamic_filter", "filter", "check_reward_nonzero_std"),
    "custom_reward_post_process_path": ("reward_post_process", "post_process_rewards"),
    "rollout_sample_filter_path": ("sample_filter", "filter"),
    "rollout_sample_hook_path": ("sample_hook", "hook"),
    "rollout_all_samples_process_path": ("process_all_samples",),
    "buffer_filter_path": ("filter",),
    "rollout_function_path": ("generate_rollout",),
    "eval_function_path": ("generate_rollout",),
    "custom_rollout_log_function_path": ("log_rollout",),
    "custom_eval_rollout_log_function_path": ("log_eval_rollout",),
    "custom_advantage_function_path": ("custom_advantages", "compute_advantages"),
    "custom_tis_function_path": ("custom_tis", "tis"),
    "custom_loss_function_path": ("custom_loss", "loss"),
    "custom_update_weight_post_write_path": ("post_write", "publish"),
    "custom_pg_loss_reducer_function_path": ("pg_loss_reducer", "reducer"),
}
"""Fields and what a function is usually called in a file given for them."""


@runtime_checkable
class GenerateFunction(Protocol):
    """--custom-generate-function-path: completes one sample."""

    async def __call__(
        self, sample: Sample, sampling_params: Mapping[str, Any], *, evaluation: bool
    ) -> Sample | list[Sample]:
        """The finished sample, or the segments it split into."""
        ...


@runtime_checkable
class RewardFunction(Protocol):
    """--custom-rm-path: rewards of some samples, one each."""

    async def __call__(self, samples: Sequence[Sample]) -> list[RewardValue]:
        """In the order of ``samples``."""
        ...


@runtime_checkable
class DynamicFilter(Protocol):
    """--dynamic-sampling-filter-path: whether a finished group is trained on."""

    def __call__(self, samples: Sequence[Sample]) -> DynamicFilterOutput:
        """The verdict on one group."""
        ...


@runtime_checkable
class RewardPostProcess(Protocol):
    """--custom-reward-post-process-path: replaces group normalisation."""

    def __call__(self, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
        """Raw rewards, and rewards to learn from."""
        ...


@runtime_checkable
class SampleFilter(Protocol):
    """--rollout-sample-filter-path: sets ``remove_sample`` on samples of the collected groups."""

    def __call__(self, groups: Sequence[list[Sample]]) -> None:
        """Change the samples in place."""
        ...


@runtime_checkable
class SampleHook(Protocol):
    """--rollout-sample-hook-path: sees every generated sample before its reward."""

    async def __call__(
        self, sample: Sample, *, rollout_id: int | None, evaluation: bool
    ) -> Sample | None:
        """A sample to go on with, or None for the same one."""
        ...


def load_hook(field: str, spec: str) -> Callable[..., Any]:
    """The function that ``spec`` means as the value of the configuration field ``field``.

    A bare ``file.py`` means the function of a usual name in it, or the only one. Upstream's own
    functions are found under their old dotted names.

    Raises:
        PluginError: with what was looked for and what is there.
    """
    names = (*_NAMES.get(field, ()), field.removesuffix("_path").removesuffix("_function"))
    return load_plugin(_complete(spec, names) if spec.endswith(".py") else spec)


def _complete(spec: str, names: Sequence[str]) -> str:
    """``file.py:name`` for a bare ``file.py``, by reading it, not by running it."""
    path = Path(spec).expanduser()
    if not path.is_file():
        raise PluginError(f"plugin file {path.resolve()} does not exist")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        why = f"line {error.lineno}: {error.msg}"
        raise PluginError(f"plugin file {path} is not Python: {why}") from error
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]
    chosen = next((name for name in names if name in public), None)
    if chosen is None and len(public) == 1:
        chosen = public[0]
    if chosen is None:
        raise PluginError(
            f"plugin file {path} defines {public}; name one as {spec}:NAME, "
            f"or call it {' or '.join(dict.fromkeys(names))}"
        )
    return f"{spec}:{chosen}"


def bind(fn: Callable[..., Any], flat: Flat) -> Callable[..., Any]:
    """``fn`` without its ``args``, deaf to keyword arguments it does not know."""
    parameters = inspect.signature(fn).parameters
    with_args = takes_args(fn)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def call(*positional: Any, **optional: Any) -> Any:
        kept = {k: v for k, v in optional.items() if takes_all or k in parameters}
        return fn(FlatArgs(flat), *positional, **kept) if with_args else fn(*positional, **kept)

    return call


async def settle(value: Any) -> Any:
    """``value``, awaited if it wants to be."""
    return await value if inspect.isawaitable(value) else value


def check(field: str, spec: str, flat: Flat) -> None:
    """Load a user function and look at how it can be called, without calling it.

    Raises:
        PluginError: it cannot be loaded, or cannot be called as it will be.
    """
    if field == "data_source_path":
        load_source(spec)
        return
    fn = load_hook(field, spec)
    if field == "buffer_filter_path":
        selection.as_select(fn, spec)
    elif field == "custom_rm_path" and inspect.isclass(fn):
        reward_arguments(spec, fn, flat.get("reward_model_path"))
    elif field != "custom_rm_path" or not is_plain(fn):
        require(field, spec, fn)


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
