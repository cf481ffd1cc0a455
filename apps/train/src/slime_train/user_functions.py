"""Load the user's functions before anything starts, so that a typo costs a second."""

from collections.abc import Iterator

from slime_core.errors import PluginError
from slime_core.hooks import check

from slime_train.run_config import RunConfig

_PATHS = (
    ("rollout", "dynamic_sampling_filter_path"),
    ("rollout", "custom_generate_function_path"),
    ("rollout", "rollout_sample_hook_path"),
    ("rollout", "rollout_sample_filter_path"),
    ("rollout", "rollout_all_samples_process_path"),
    ("rollout", "buffer_filter_path"),
    ("data", "data_source_path"),
    ("rollout", "rollout_function_path"),
    ("rollout", "custom_rollout_log_function_path"),
    ("rollout", "custom_eval_rollout_log_function_path"),
    ("rollout", "rollout_data_postprocess_path"),
    ("evaluation", "eval_function_path"),
    ("debug", "custom_megatron_init_path"),
    ("debug", "custom_megatron_before_log_prob_hook_path"),
    ("debug", "custom_megatron_before_train_step_hook_path"),
    ("model", "custom_model_provider_path"),
    ("reward", "custom_convert_samples_to_train_data_path"),
    ("reward", "custom_rm_path"),
    ("reward", "custom_reward_post_process_path"),
    ("advantage", "custom_advantage_function_path"),
    ("sync", "custom_update_weight_post_write_path"),
    ("off_policy", "custom_tis_function_path"),
    ("policy_loss", "custom_loss_function_path"),
    ("policy_loss", "custom_pg_loss_reducer_function_path"),
)


def problems(config: RunConfig) -> Iterator[str]:
    """A complaint for every user function that does not load or cannot be called as it will be."""
    for name, spec in _given(config):
        try:
            check(name, spec, config.flat)
        except PluginError as error:
            yield f"--{name.replace('_', '-')} {spec}: {error}"


def _given(config: RunConfig) -> Iterator[tuple[str, str]]:
    for section, name in _PATHS:
        given: str | tuple[str, ...] | None = getattr(getattr(config, section), name)
        for spec in (given,) if isinstance(given, str) else given or ():
            yield name, spec
    for each in config.evaluation.eval_datasets:
        for name in ("custom_generate_function_path", "custom_rm_path"):
            if spec := getattr(each, name):
                yield name, spec
