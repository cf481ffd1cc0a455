"""What resolving a configuration needs to know of the machine and of files; gathered once."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from slime_convert.families import find, read_config
from slime_core.errors import CheckpointError, DataError

from slime_train.sources import RawConfig

_SLICE = re.compile(r"@\[[^\]]*\]$")


@dataclass(frozen=True, slots=True)
class Facts:
    """The world outside the command line; made up freely in tests."""

    hf_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    megatron_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Architecture by Megatron destination, from the model's config.json."""
    num_gpus: int = 0
    """NVIDIA devices this process may use."""
    in_cluster: bool = False
    """Ray spans other machines, whose devices cannot be counted here."""
    now: datetime = datetime(2000, 1, 1)
    columns: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    """Prompt file -> columns of its first row."""
    num_prompts: int | None = None
    """Rows of --prompt-data, counted only where --num-epoch asks for them."""
    tensorboard_dir: str | None = None
    problems: tuple[str, ...] = ()


def gather(raw: RawConfig) -> Facts:
    """Look at the devices, the model's config.json and the first rows of the prompt files."""
    problems: list[str] = []
    hf_config, megatron_args = _model(raw, problems)
    prompts: tuple[str, ...] = raw.value("prompt_data", ())
    sets: tuple[tuple[str, str], ...] = raw.value("eval_prompt_data", ())
    files = [("--prompt-data", path) for path in prompts]
    files += [("--eval-prompt-data", path) for _, path in sets]
    columns = {path: _columns(flag, path, problems) for flag, path in files}
    counted = raw.value("num_epoch") is not None and not problems
    return Facts(
        hf_config=hf_config,
        megatron_args=megatron_args,
        num_gpus=visible_gpus(os.environ),
        in_cluster="RAY_ADDRESS" in os.environ,
        now=datetime.now(),
        columns=columns,
        num_prompts=sum(_count(path) for path in prompts) if counted else None,
        tensorboard_dir=os.environ.get("TENSORBOARD_DIR"),
        problems=tuple(problems),
    )


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """How many NVIDIA devices there are, as far as CUDA_VISIBLE_DEVICES shows them."""
    present = len([path for path in devices.glob("nvidia*") if path.name[6:].isdigit()])
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return present
    listed = [item for item in shown.split(",") if item.strip() and item.strip() != "-1"]
    return min(present, len(listed))


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


def _columns(flag: str, path: str, problems: list[str]) -> frozenset[str]:
    plain = _SLICE.sub("", path)
    if not Path(plain).is_file():
        problems.append(f"{flag} {path}: there is no such file; give a .jsonl or .parquet file")
        return frozenset()
    from slime_core.data.prompts import read_rows

    try:
        first = next(iter(read_rows(path)), None)
    except DataError as error:
        problems.append(f"{flag} {path}: {error}")
        return frozenset()
    if first is None:
        problems.append(f"{flag} {path}: has no rows")
    return frozenset(first or ())


def _count(path: str) -> int:
    from slime_core.data.prompts import read_rows

    return sum(1 for _ in read_rows(path))
