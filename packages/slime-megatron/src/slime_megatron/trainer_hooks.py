"""User functions that see Megatron's own objects; upstream's signatures.

init(args)                                                        after the process groups
before_log_probs(args, model, store_prefix)                       before a pass without gradient
before_train_step(args, rollout_id, step_id, model, optimizer, opt_param_scheduler)
model_provider(pre_process, post_process, vp_stage=None)          builds a stage of the model
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from slime_core.config.debug import DebugConfig
from slime_core.plugins.functions import bind, load_hook


def _nothing(*args: Any) -> None:
    """No function was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerHooks:
    """Called with everything but ``args``, which they already have."""

    after_init: Callable[[], None] = _nothing
    before_log_probs: Callable[[Any, str], None] = _nothing
    """(chunks of the model, prefix of the policy: "", "ref_", "teacher_" or "old_actor_")."""
    before_train_step: Callable[[int, int, Any, Any, Any], None] = _nothing
    """(iteration, step of it, chunks of the model, optimizer, scheduler)."""


def trainer_hooks(debug: DebugConfig, flat: Mapping[str, Any]) -> TrainerHooks:
    """The functions that the flags name.

    Raises:
        PluginError: one of them cannot be loaded.
    """
    fields = {
        "after_init": "custom_megatron_init_path",
        "before_log_probs": "custom_megatron_before_log_prob_hook_path",
        "before_train_step": "custom_megatron_before_train_step_hook_path",
    }
    given = {name: (path, getattr(debug, path)) for name, path in fields.items()}
    loaded = {name: bind(load_hook(*pair), flat) for name, pair in given.items() if pair[1]}
    return TrainerHooks(**loaded)


def model_provider(spec: str | None) -> Callable[..., Any] | None:
    """``--custom-model-provider-path``."""
    return None if spec is None else load_hook("custom_model_provider_path", spec)
