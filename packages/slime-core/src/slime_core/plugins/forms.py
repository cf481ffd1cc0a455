"""How each user function is called, and whether a given one can be: known before anything starts.

A function whose first parameter is called ``args`` gets the flags there. Keyword arguments that it
does not know are left out.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from slime_core.errors import PluginError


@dataclass(frozen=True, slots=True)
class Form:
    """One way of calling a function: values by position, by keyword, and where it knows them."""

    positional: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    named: tuple[str, ...] = ()


def _form(positional: str = "", optional: str = "") -> Form:
    return Form(tuple(positional.split()), tuple(optional.split()))


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "custom_generate_function_path": _form("sample sampling_params", "evaluation"),
        "custom_rm_path": _form("sample"),
        "dynamic_sampling_filter_path": _form("samples"),
        "custom_reward_post_process_path": _form("samples"),
        "custom_convert_samples_to_train_data_path": _form("samples"),
        "rollout_sample_filter_path": _form("data"),
        "rollout_sample_hook_path": _form("sample", "rollout_id evaluation"),
        "rollout_all_samples_process_path": _form("all_samples data_source"),
        "rollout_data_postprocess_path": _form("rollout_id rollout_data"),
        "custom_update_weight_post_write_path": _form("version_dir engines"),
        "custom_advantage_function_path": _form("rollout_data"),
        "custom_loss_function_path": _form("batch logits sum_of_sample_mean"),
        "custom_tis_function_path": _form(
            "",
            "pg_loss train_log_probs rollout_log_probs loss_masks total_lengths response_lengths",
        ),
        "custom_megatron_init_path": _form(),
        "custom_megatron_before_log_prob_hook_path": _form("model store_prefix"),
        "custom_megatron_before_train_step_hook_path": _form(
            "rollout_id step_id model optimizer opt_param_scheduler"
        ),
    }
)
"""Fields whose function gets ``args`` first, if it wants them, then these."""

EXACT: Mapping[str, Form] = MappingProxyType(
    {
        "rollout_function_path": _form("args rollout_id data_source", "evaluation"),
        "eval_function_path": _form("args rollout_id data_source", "evaluation"),
        "custom_rollout_log_function_path": _form(
            "rollout_id args samples extra_metrics rollout_time"
        ),
        "custom_eval_rollout_log_function_path": _form("rollout_id args data extra_metrics"),
        "custom_pg_loss_reducer_function_path": _form(
            "total_lengths response_lengths masks calculate_per_token_loss"
        ),
        "custom_model_provider_path": Form(named=("pre_process", "post_process", "vp_stage")),
    }
)
"""Fields whose function gets just these."""

LIST_OF_SAMPLES = _form("samples", "sampling_params evaluation")
"""The other form of --custom-generate-function-path, told by a parameter called ``samples``."""

_PLAIN = _form("response label metadata")
"""The other form of --custom-rm-path, told by its parameters' names: see ``is_plain``."""

FIELDS = (*FORMS, *EXACT, "buffer_filter_path", "data_source_path")
"""Every field that names a function or a class of the user's."""

_OF_SAMPLES = (
    "custom_rm_path",
    "custom_generate_function_path",
    "rollout_function_path",
    "rollout_sample_hook_path",
    "rollout_sample_filter_path",
    "rollout_all_samples_process_path",
    "dynamic_sampling_filter_path",
    "data_source_path",
)
"""Fields whose function may set attributes of a sample."""

_OF_GROUPS = ("data_source_path", "rollout_function_path")
"""Fields whose class or function decides how many groups there are, and of how many samples."""

_ASYNC = ("custom_generate_function_path", "custom_rm_path", "rollout_sample_hook_path")
"""Fields whose function may be asynchronous."""


def given(value_of: Callable[[str], Any], fields: Sequence[str] = FIELDS) -> list[tuple[str, str]]:
    """Field and function of every one that is set, those of a field that takes several too."""
    found: list[tuple[str, str]] = []
    for name in fields:
        specs: str | tuple[str, ...] | None = value_of(name)
        found += [(name, spec) for spec in ((specs,) if isinstance(specs, str) else specs or ())]
    return found


def functions_of_samples(flat: Mapping[str, Any]) -> str:
    """The flags of the user's functions that may set attributes of a sample, for a message."""
    return _flags(given(flat.get, _OF_SAMPLES))


def functions_of_groups(flat: Mapping[str, Any]) -> str:
    """The flags of the user's that groups come from, for a message."""
    return _flags(given(flat.get, _OF_GROUPS))


def _flags(found: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"--{name.replace('_', '-')} {spec}" for name, spec in found)


def takes_args(fn: Callable[..., Any]) -> bool:
    """Whether the first parameter of ``fn`` is called ``args``."""
    parameters = list(inspect.signature(fn).parameters.values())
    return bool(parameters) and parameters[0].name.lstrip("_") == "args"


def takes_list(fn: Callable[..., Any]) -> bool:
    """Whether a generate function completes a list of samples."""
    return "samples" in inspect.signature(fn).parameters


def is_plain(fn: object) -> bool:
    """Whether a reward function is one of ``(response, label, metadata)``, not asynchronous."""
    if not inspect.isfunction(fn) or inspect.iscoroutinefunction(fn):
        return False
    return tuple(inspect.signature(fn).parameters)[:3] == _PLAIN.positional


def reward_arguments(spec: str, cls: type, model_path: str | None) -> tuple[str, ...]:
    """What a class given as --custom-rm-path is made with: the path of its model, or nothing.

    Raises:
        PluginError: it scores nothing, or cannot be made like that.
    """
    if not hasattr(cls, "compute_reward"):
        raise PluginError(f"plugin {spec!r} is a class without compute_reward(prompts, responses)")
    signature = inspect.signature(cls)
    arguments = () if model_path is None or not signature.parameters else (model_path,)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise PluginError(
            f"plugin {spec!r} must be constructible without arguments, or with a path given as "
            f"--reward-model-path: {error}"
        ) from error
    return arguments


def require(field: str, spec: str, fn: Callable[..., Any]) -> None:
    """Check that ``fn`` can be called as the function of the configuration field ``field`` is.

    Raises:
        PluginError: it cannot, or it is asynchronous where nothing would await it.
    """
    if inspect.iscoroutinefunction(fn) and field not in _ASYNC:
        raise PluginError(f"plugin {spec!r} must not be async: nothing awaits what it returns")
    form = FORMS.get(field) or EXACT.get(field)
    if form is None:
        return
    if field == "custom_generate_function_path" and takes_list(fn):
        form = LIST_OF_SAMPLES
    first = ("args",) if field in FORMS and takes_args(fn) else ()
    signature = inspect.signature(fn)
    known = [name for name in form.optional if name in signature.parameters]
    known += form.named
    try:
        signature.bind(*first, *form.positional, **dict.fromkeys(known))
    except TypeError as error:
        shapes = " or ".join(_shown(each) for each in _shapes(field))
        raise PluginError(
            f"plugin {spec!r} must be callable as {shapes}, but is {signature}: {error}"
        ) from error


def _shapes(field: str) -> Sequence[Form]:
    if field in EXACT:
        return [EXACT[field]]
    forms = [FORMS[field]]
    if field == "custom_generate_function_path":
        forms.append(LIST_OF_SAMPLES)
    if field == "custom_rm_path":
        return [Form(("args", "sample")), *forms, _PLAIN]
    with_args = [Form(("args", *form.positional), form.optional) for form in forms]
    return with_args if len(forms) > 1 else [*with_args, *forms]


def _shown(form: Form) -> str:
    keywords = ", ".join(["*", *form.named, *form.optional]) if form.named + form.optional else ""
    return f"f({', '.join(filter(None, (*form.positional, keywords)))})"
