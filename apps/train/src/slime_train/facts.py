"""What resolving a configuration needs to know of the machine and of files; gathered once."""

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from slime_convert.families import find, read_config
from slime_core.config.algorithm import PAIR_LOSSES, PreferenceConfig
from slime_core.config.data import DataConfig
from slime_core.config.draft import Facts
from slime_core.config.eval_sets import dataset_paths
from slime_core.config.yaml_file import load_yaml
from slime_core.errors import CheckpointError, ConfigError, DataError
from slime_core.this_machine import available_memory, visible_gpus

from slime_train.runtime.env import ray_address
from slime_train.sources import RawConfig


def gather(raw: RawConfig) -> Facts:
    """Look at the devices, the model's config.json and the first rows of the prompt files."""
    from slime_core.data.prompts import columns_found
    from slime_core.data.rows import epoch_len

    problems: list[str] = []
    hf_config, megatron_args = _model(raw, problems)
    prompts: tuple[str, ...] = raw.value("prompt_data", ())
    for path in prompts:
        _look_into("--prompt-data", path, raw, problems)
    for _, path in raw.value("eval_prompt_data", ()):
        _look_into("--eval-prompt-data", path, raw, problems)
    eval_file = _eval_file(raw, problems)
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
        eval_file=eval_file,
        tensorboard_dir=os.environ.get("TENSORBOARD_DIR"),
        problems=tuple(problems),
    )


def _model(raw: RawConfig, problems: list[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    directory = raw.value("hf_checkpoint")
    if directory is None:
        return {}, {}
    try:
        config = dict(read_config(directory))
        if name := raw.value("model_name"):
            config["model_type"] = name
        return config, find(config).megatron_args(config)
    except CheckpointError as error:
        problems.append(f"--hf-checkpoint {directory}: {error}")
        return {}, {}


def _eval_file(raw: RawConfig, problems: list[str]) -> Mapping[str, Any] | None:
    """What --eval-config holds, its sets looked into."""
    path = raw.value("eval_config")
    if path is None:
        return None
    try:
        content = load_yaml("--eval-config", Path(path))
    except ConfigError as error:
        problems.append(str(error))
        return None
    for data, row in dataset_paths(content):
        _look_into("--eval-config", data, raw, problems, row)
    return content


def _look_into(
    flag: str,
    path: str,
    raw: RawConfig,
    problems: list[str],
    row: Mapping[str, Any] | None = None,
) -> None:
    """Read the first prompt of a file, so that a wrong name or column costs a second."""
    from slime_core.data.file_slice import parse
    from slime_core.data.pairs import read_pairs
    from slime_core.data.prompts import read_prompts

    data = _columns(raw, row or {}, evaluation=flag.startswith("--eval"))
    try:
        if not parse(path).path.exists():
            problems.append(f"{flag} {path}: there is no such file; give a .jsonl or .parquet file")
            return
        prompts = read_prompts(data, sources=(path,))
        if raw.value("loss_type") in PAIR_LOSSES:
            names = ("chosen_key", "rejected_key")
            given = {name: raw.value(name) for name in names if raw.value(name) is not None}
            prompts = read_pairs(data, PreferenceConfig(**given), sources=(path,))
        if next(prompts, None) is None:
            problems.append(f"{flag} {path}: has no rows")
    except DataError as error:
        problems.append(f"{flag} {error}")


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
