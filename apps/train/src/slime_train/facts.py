"""What resolving a configuration needs to know of the machine and of files; gathered once."""

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from slime_convert.families import find, read_config
from slime_convert.saved_model import of_other_models
from slime_core.config.algorithm import PAIR_LOSSES, PreferenceConfig
from slime_core.config.data import DataConfig
from slime_core.config.draft import Facts
from slime_core.config.eval_sets import dataset_paths
from slime_core.config.yaml_file import load_yaml
from slime_core.data.first_look import FirstLook, first_look
from slime_core.data.prompts import columns_found
from slime_core.data.rows import epoch_len
from slime_core.errors import CheckpointError, ConfigError
from slime_core.processes.this_machine import available_memory, visible_gpus

from slime_train.runtime.env import ray_address
from slime_train.sources import RawConfig


def gather(raw: RawConfig, part: str = "") -> Facts:
    """Look at the devices, the model's config.json and the first rows of the prompt files.

    ``part``: where in a checkpoint of several models this one is.
    """
    problems: list[str] = []
    hf_config, megatron_args = _model(raw, part, problems)
    prompts = _prompt_files(raw)
    eval_file = _eval_file(raw, problems)
    looks = [
        (flag, path, _look(path, row, flag, raw)) for flag, path, row in _files(raw, eval_file)
    ]
    problems += [f"{flag} {look.problem}" for flag, _, look in looks if look.problem]
    counted = raw.value("num_epoch") is not None and not problems
    data = _columns(raw, {}, evaluation=False)
    return Facts(
        hf_config=hf_config,
        megatron_args=megatron_args,
        num_gpus=raw.value("assume_gpus") or visible_gpus(os.environ),
        in_cluster=ray_address() is not None,
        host_bytes=None if raw.value("assume_gpus") else available_memory(),
        now=datetime.now(),
        num_prompts=sum(map(epoch_len, prompts)) if counted else None,
        prompt_columns=columns_found(data, prompts) if prompts and not problems else {},
        unlabelled=tuple(f"{flag} {path}" for flag, path, look in looks if not look.gradable),
        eval_file=eval_file,
        tensorboard_dir=os.environ.get("TENSORBOARD_DIR"),
        problems=tuple(problems),
    )


def _model(
    raw: RawConfig, part: str, problems: list[str]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    directory = raw.value("hf_checkpoint")
    if directory is None:
        return {}, {}
    try:
        config = dict(read_config(directory))
        if name := raw.value("model_name"):
            config["model_type"] = name
        family = find(config)
        arguments = family.megatron_args(config)
    except CheckpointError as error:
        problems.append(f"--hf-checkpoint {directory}: {error}")
        return {}, {}
    steps = {"save": None, "load": raw.value("ckpt_step"), "ref_load": raw.value("ref_ckpt_step")}
    saved = {f"--{name.replace('_', '-')}": (raw.value(name), step) for name, step in steps.items()}
    problems += of_other_models(saved, family, arguments, part=part)
    return config, arguments


def _eval_file(raw: RawConfig, problems: list[str]) -> Mapping[str, Any] | None:
    """What --eval-config holds."""
    path = raw.value("eval_config")
    if path is None:
        return None
    try:
        return load_yaml("--eval-config", Path(path))
    except ConfigError as error:
        problems.append(str(error))
        return None


def _files(
    raw: RawConfig, eval_file: Mapping[str, Any] | None
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(flag, path, what --eval-config says of it) of every file of prompts."""
    for path in _prompt_files(raw):
        yield "--prompt-data", path, {}
    for _, path in raw.value("eval_prompt_data", ()):
        yield "--eval-prompt-data", path, {}
    for path, row in dataset_paths(eval_file or {}):
        yield "--eval-config", path, row


def _prompt_files(raw: RawConfig) -> tuple[str, ...]:
    """Those that slime reads, not a class of the user's."""
    return raw.value("prompt_data", ()) if raw.value("rollout_global_dataset", True) else ()


def _look(path: str, row: Mapping[str, Any], flag: str, raw: RawConfig) -> FirstLook:
    data, preference = _columns(raw, row, evaluation=flag.startswith("--eval")), None
    if raw.value("loss_type") in PAIR_LOSSES:
        names = ("chosen_key", "rejected_key")
        given = {name: raw.value(name) for name in names if raw.value(name) is not None}
        preference = PreferenceConfig(**given)
    answered = raw.value("loss_type") == "sft_loss" and flag == "--prompt-data"
    return first_look(path, data, preference, answered=answered)


def _columns(raw: RawConfig, row: Mapping[str, Any], *, evaluation: bool) -> DataConfig:
    """How rows are read, as far as it is given."""
    given: dict[str, Any] = {}
    names = ("input_key", "label_key", "tool_key", "metadata_key")
    for name in (*names, "system_prompt", "apply_chat_template", "data_error_policy"):
        own = raw.value(f"eval_{name}") if evaluation else None
        value = row.get(name) or own or raw.value(name)
        if value is not None:
            given[name] = value
    return DataConfig(**given)
