"""What the benchmarks with real engines share: shapes, files without weights, turns, rows."""

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from slime_convert.presets import PRESETS
from slime_train.quickstart.model import qwen3_config, write_tokenizer

MODELS = {
    "tiny": None,
    "Qwen3-0.6B": "qwen3-0.6B",
    "Qwen3-1.7B": "qwen3-1.7B",
    "Qwen3-4B": "qwen3-4B",
}
GRAPHS = [1, 8, 32, 64, 128, 192, 256]
"""Batch sizes of decoding that CUDA graphs are captured for; others are padded."""


def on_gpu() -> bool:
    """Whether this machine has one."""
    return torch.cuda.is_available()


def wait() -> None:
    """Until the GPU, where there is one, has done all it was told to."""
    if on_gpu():
        torch.cuda.synchronize()


def machine_name() -> str:
    """As it stands in the names of result files."""
    count = torch.cuda.device_count()
    name = torch.cuda.get_device_name(0).replace(" ", "-").lower() if count else "cpu"
    return f"{count}x{name}" if count > 1 else name


def config_of(model: str) -> dict[str, Any]:
    """Its config.json."""
    preset = MODELS[model]
    if preset is None:
        return qwen3_config()
    return dict(PRESETS[preset]) | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
    }


def write_shape(directory: Path, model: str) -> Path:
    """A checkpoint's directory without weights: they are random, and made where they are used."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config_of(model)))
    write_tokenizer(directory, ())
    return directory


def server_arguments(**more: Any) -> dict[str, Any]:
    """What engines of random weights are started with."""
    arguments: dict[str, Any] = {"load_format": "dummy"}
    if on_gpu():
        arguments |= {"attention_backend": "triton", "disable_cuda_graph": True}
    return arguments | more


@contextmanager
def turn() -> Generator[None]:
    """One benchmark measures at a time, of those that were given the same BENCHMARK_LOCK."""
    path = os.environ.get("BENCHMARK_LOCK")
    if path is None:
        yield
        return
    with Path(path).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def row(
    what: str,
    model: str,
    value: float,
    unit: str,
    target: float | None = None,
    *,
    most: bool = True,
) -> dict[str, Any]:
    """One result; ``target`` is met from below, or with ``most=False`` from above."""
    met = None
    if target is not None:
        met = value <= target if most else value >= target
    return {
        "what": what, "model": model, "value": value, "unit": unit, "target": target, "met": met,
    }  # fmt: skip
