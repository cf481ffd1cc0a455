"""Turns against overlap: the quickstart's task learned by ``slime-train`` both ways.

From one warmed-up model, ``--async-buffer-size 0`` and ``1`` train the same number of iterations,
the trainer and the engine with one thread each, so that on two cores neither waits for the other's.
From the ledger of the run in turns follows how much faster overlap can be: what it saves is the
smaller of what the engine and the trainer do while the other waits.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from record import record
from slime_train.quickstart import commands
from slime_train.quickstart.report import read_curves, read_series
from slime_train.quickstart.task import TaskFiles, write_task

ONE_THREAD = ("--train-env-vars", json.dumps({"OMP_NUM_THREADS": "1"}))
OVERLAPPED = ("--async-buffer-size", "1", "--max-staleness", "1", "--use-tis")
WAYS = {"in turns": ONE_THREAD, "overlapped": (*ONE_THREAD, *OVERLAPPED)}


def main() -> None:
    """Learn both ways for every seed, and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            rows += compared(Path(scratch), seed)
    record("overlap", vars(options), rows)


def compared(directory: Path, seed: int) -> list[dict[str, Any]]:
    """A row for each way; the second says what the first one's ledger foretold."""
    started = directory / "quickstart"
    words = f"--output-dir {started} --seed {seed} --stop-after warm-up"
    run(["slime-quickstart", *words.split()])
    task = write_task(started / "data", seed=seed)
    rows = [learned(started, task, way, seed) for way in WAYS]
    turns, overlapped = rows
    saved = min(turns["engine_share"], turns["trainer_share"])
    overlapped["foretold"] = 1 / (1 - saved)
    overlapped["speedup"] = turns["iteration_s"] / overlapped["iteration_s"]
    return rows


def learned(started: Path, task: TaskFiles, way: str, seed: int) -> dict[str, Any]:
    """Accuracy and times of one run; medians over iterations after the first five."""
    output = started / "run"
    shutil.rmtree(output, ignore_errors=True)
    run([*commands.reinforce(started / "warm-up/hf", task, output, seed=seed), *WAYS[way]])
    metrics = output / "metrics.jsonl"
    outcome = read_curves(metrics, commands.EVALUATION_SET).outcome()

    def share(name: str) -> float:
        series = read_series(metrics, f"perf/{name}_share")
        return statistics.median(list(series.values())[5:])

    return {
        "way": way,
        "seed": seed,
        "accuracy_before": outcome.accuracy_before,
        "accuracy_after": outcome.accuracy_after,
        "iteration_s": statistics.median(between(metrics)[5:]),
        "engine_share": share("engines_generate"),
        "trainer_share": share("trainer_train"),
        "publish_share": share("trainer_publish"),
        "foretold": None,
        "speedup": None,
    }


def between(metrics: Path) -> list[float]:
    """Seconds from the end of one step to that of the next."""
    lines = map(json.loads, metrics.read_text().splitlines())
    times = [line["time"] for line in lines if "train/loss" in line]
    return [after - before for before, after in pairwise(times)]


def run(words: Sequence[str]) -> None:
    """One of this environment's commands, to its end."""
    program = Path(sys.executable).with_name(words[0])
    subprocess.run([program, *words[1:]], check=True)


if __name__ == "__main__":
    main()
