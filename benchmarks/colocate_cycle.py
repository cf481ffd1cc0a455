"""How long trainer and engine take to change places on one GPU, and whether memory grows.

A cycle is what an iteration of a colocated run does: the engine releases its memory, the trainer
takes its own back and takes a step, keeps its weights while they are published, gives them up, and
the engine generates again. Both ways together are the seconds of those four moves; step and
publish are apart. Weights are random at the shapes of published models; on a CPU a tiny model
shows that the same code runs.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from record import record
from slime_testing.colocate_case import SHAPES, Couple

TARGET_S = {"Qwen3-4B": 2.5}
_MOVES = ("release", "onload", "offload", "resume")


def main() -> None:
    """Measure each model and record."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    models = ["Qwen3-4B"] if on_gpu else ["tiny"]
    parser.add_argument("--models", nargs="+", choices=[*SHAPES, "tiny"], default=models)
    parser.add_argument("--cycles", type=int, default=6)
    parser.add_argument("--share", type=float, default=0.8, help="of the GPU that the engine takes")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in options.models:
        with (
            tempfile.TemporaryDirectory() as scratch,
            Couple(model, Path(scratch), share=options.share) as couple,
        ):
            found = [couple.cycle() for _ in range(options.cycles)]
        rows += described(model, found[1:] or found)
    machine = torch.cuda.get_device_name(0).replace(" ", "-").lower() if on_gpu else "cpu"
    record(f"colocate_cycle-{machine}", vars(options), rows)


def described(model: str, cycles: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Medians of times; growth from the first cycle to the last."""

    def median(name: str) -> float:
        return statistics.median(cycle.get(name, 0.0) for cycle in cycles)

    both = statistics.median(
        sum(cycle.get(f"perf/{move}_s", 0.0) for move in _MOVES) for cycle in cycles
    )
    target = TARGET_S.get(model)
    rows: list[tuple[str, float, str, float | None]] = [
        ("switch both ways", both, "s", target),
        *((f"of it {move}", median(f"perf/{move}_s"), "s", None) for move in _MOVES),
        ("publish", median("perf/update_weights_time"), "s", None),
        ("host memory", median("perf/offload_host_bytes") / 2**30, "GiB", None),
        ("free while training", median("free_training") / 2**30, "GiB", None),
        ("free while generating", median("free_generating") / 2**30, "GiB", None),
    ]
    for name, label in (("resident", "host"), ("free_generating", "device")):
        grown = (cycles[-1][name] - cycles[0][name]) / 2**20
        grown = grown if name == "resident" else -grown
        rows.append((f"growth over {len(cycles) - 1} cycles, {label}", grown, "MiB", None))
    return [
        {
            "what": what,
            "model": model,
            "value": value,
            "unit": unit,
            "target": limit,
            "met": None if limit is None else value <= limit,
        }
        for what, value, unit, limit in rows
    ]


if __name__ == "__main__":
    main()
