"""Find the function that a flag names, and call it as its author expects.

A function whose first parameter is called ``args`` gets a fresh ``FlatArgs`` there; one without it
is called without. Keyword arguments a function does not know are left out. Functions may be
``async`` or not.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slime_core.config.flat import Flat, FlatArgs
from slime_core.errors import PluginError
from slime_core.plugins.forms import takes_args
from slime_core.plugins.plugin import load_plugin

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
