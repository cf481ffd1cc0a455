"""A flag does something or is refused: every accepted one is read by the code that runs."""

import re

from slime_core.config.eval_sets import FALLBACKS
from slime_testing.workspace import PACKAGES, modules
from slime_train.sources import slime_flags

SETTLED_BY_RULES = {
    "actor_num_nodes": "becomes the number of ranks",
    "actor_num_gpus_per_node": "becomes the number of ranks",
    "num_gpus_per_node": "bounds the devices that are counted",
    "rollout_num_gpus_per_engine": "becomes the engines' tp_size",
    "colocate": "decides how many devices are needed and the engines' memory",
    "offload": "becomes offload_train and offload_rollout",
    "offload_host_memory_gib": "bounds what --offload-train may take",
    "distributed_backend": "checked against the device and forwarded to Megatron",
    "model_name": "replaces config.json's model_type",
    "num_steps_per_rollout": "becomes global_batch_size and train_iters",
    "rollout_data_transport": "only object-store is accepted",
    "check_weight_update_equal": "every publish is verified",
    "recompute_loss_function": "is done anyway",
    "compute_advantages_and_returns": "must fit --loss-type",
    "debug_train_only": "switches the engines off",
    "loss_mask_type": "the model's own chat template says it",
    "train_backend": "has one value",
    "max_staleness": "bounds async_buffer_size and max_token_staleness",
    "eval_prompt_data": "becomes eval_datasets",
    "eval_config": "becomes eval_datasets",
    "max_turns": "read by user functions as args.max_turns",
    "custom_config_path": "read with the command line",
    "dump_config": "read by the command line",
    "assume_gpus": "with dump_config: the number of devices",
    "dump_details": "becomes the two save_debug paths",
    "sglang_router_request_timeout_secs": "becomes the router's request_timeout_secs",
}
CONFIGURATION = {
    *("config.py", "rules.py", "resolve.py", "sources.py", "facts.py"),
    *("hooks.py", "hook_forms.py", "user_functions.py"),
}


def running_code() -> str:
    """The source of everything but the configuration."""
    paths = (path for package in PACKAGES for path in modules(package))
    return "\n".join(
        path.read_text(encoding="utf-8")
        for path in paths
        if "config" not in path.parts and path.name not in CONFIGURATION
    )


def test_every_accepted_flag_is_read_somewhere():
    accepted = {
        flag.dest
        for flag in slime_flags()
        if not isinstance(flag.spelling.get("planned"), str) and flag.dest not in SETTLED_BY_RULES
    }
    words = set(re.findall(r"\w+", running_code()))
    of_sets = {run: own for own, run in FALLBACKS.items() if run.startswith("eval_")}
    read = words | {run for run, own in of_sets.items() if own in words}
    unread = sorted(accepted - read)
    assert unread == []
