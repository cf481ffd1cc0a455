"""How long Hugging Face weights take into the trainer, next to reading the same files.

They take turns on one bf16 checkpoint of random weights, which the page cache holds from the first
turn on: what is measured is names, slices, copies and the optimizer's float32 copy, not the disk.
transformers maps the files and copies nothing until a weight is used: a floor, not a peer.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import record
from slime_convert.presets import PRESETS
from slime_train.facts import gather
from slime_train.quickstart.model import write_qwen3
from slime_train.resolve import resolve
from slime_train.sources import read_sources
from slime_train.trainer_host import TrainerHost
from transformers import AutoModelForCausalLM


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="qwen3-0.6B", help="a Qwen3 of slime_convert.presets")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, "model")
        config = dict(PRESETS[options.preset]) | {
            "architectures": ["Qwen3ForCausalLM"],
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
        }
        write_qwen3(directory, config, seed=0, init_std=0.02)
        size = sum(path.stat().st_size for path in directory.glob("*.safetensors")) / 1e9
        host = trainer(directory, Path(scratch))
        from slime_megatron.mcore.first_weights import load_weights  # Megatron is imported by now

        state = host._trainer._state
        seconds = measure(
            {
                "reading the bytes": lambda: read(directory),
                "transformers (mapped)": lambda: AutoModelForCausalLM.from_pretrained(
                    directory, dtype=torch.bfloat16
                ),
                "slime, with the optimizer's copy": lambda: load_weights(state, directory),
            },
            options.repeats,
        )
    first = seconds["reading the bytes"]
    rows = [
        {
            "what": name,
            "model": options.preset,
            "gb": size,
            "seconds": found,
            "gb_per_s": size / found,
            "relative": first / found,
        }
        for name, found in seconds.items()
    ]
    record("load", vars(options), rows)


def trainer(directory: Path, scratch: Path) -> TrainerHost:
    """One rank of the trainer, built and loaded once."""
    data = scratch / "data.jsonl"
    data.write_text('{"prompt": "1+1=", "label": "2"}\n')
    words = (
        f"--hf-checkpoint {directory} --prompt-data {data} --loss-type sft_loss --num-rollout 1 "
        f"--rollout-batch-size 1 --bf16 --output-dir {scratch / 'out'}"
    )
    raw = read_sources(words.split())
    host = TrainerHost(resolve(raw, gather(raw)).config, 0, 1)
    host.initialize(f"file://{scratch / 'rendezvous'}", None)
    return host


def read(directory: Path) -> None:
    """Every byte of the weights, into memory and away again."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 26):
                pass


def measure(loaders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(repeats):
        for name, load in loaders.items():
            gc.collect()
            start = time.perf_counter()
            load()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
