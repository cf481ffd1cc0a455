"""From the command to the first trained step, split by phase, with everything real.

Runs ``slime-train`` once for one GRPO iteration on the quickstart's model and reads the clock when
each phase is reported: on the terminal, or as a record of metrics.jsonl.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from record import record
from slime_train.quickstart.cli import write_model
from slime_train.quickstart.task import write_task

SAID = {
    "starting the trainer and the engines": "command line checked, Ray started",
    "ready after": "trainer and engines ready",
}
"""What the terminal says at the end of a phase, and what the phase was."""

MEASURED = {
    "perf/update_weights_time": "weights published and verified",
    "rollout/raw_reward": "first rollout generated and scored",
    "train/loss": "first step trained",
}
"""The metric that is first logged at the end of a phase."""


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        words = command(directory, engines=options.engines)
        begin = time.time()
        reached = said(words)
        reached |= measured(directory / "run/metrics.jsonl")
        ended = time.time()
    record("startup", vars(options), phases(begin, reached, ended))


def command(directory: Path, *, engines: int) -> list[str]:
    """One small iteration."""
    task = write_task(directory / "data", seed=0)
    model = write_model(directory / "model", seed=0)
    words = f"""--hf-checkpoint {model} --prompt-data {task.train} --input-key prompt
        --label-key label --apply-chat-template --output-dir {directory / "run"} --rm-type math
        --num-rollout 1 --rollout-batch-size 8 --n-samples-per-prompt 8 --global-batch-size 64
        --rollout-max-response-len 8 --device cpu --rollout-num-engines {engines}"""
    return [str(Path(sys.executable).with_name("slime-train")), *words.split()]


def said(words: Sequence[str]) -> dict[str, float]:
    """Run the command; when the terminal reported the end of which phase."""
    reached: dict[str, float] = {}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            reached |= {p: time.time() for text, p in SAID.items() if line.startswith(text)}
    if process.returncode:
        raise SystemExit(f"slime-train ended with exit code {process.returncode}")
    return reached


def measured(metrics: Path) -> dict[str, float]:
    """When metrics.jsonl first had the metric of which phase."""
    reached: dict[str, float] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        for name, phase in MEASURED.items():
            if name in found:
                reached.setdefault(phase, found["time"])
    return reached


def phases(
    begin: float, reached: Mapping[str, float], ended: float
) -> list[dict[str, str | float]]:
    """Every phase in order of time: how long it took, and when it ended after the start."""
    ends = sorted({**reached, "everything ended": ended}.items(), key=lambda item: item[1])
    results: list[dict[str, str | float]] = []
    before = begin
    for phase, at in ends:
        results.append({"phase": phase, "seconds": at - before, "since_start_s": at - begin})
        before = at
    return results


if __name__ == "__main__":
    main()
