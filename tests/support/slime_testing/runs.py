"""Whole runs of ``slime-train`` as a user starts them, and what they leave behind."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 600


def write_sums(path: Path, count: int, seed: int = 0) -> Path:
    """Prompts such as 3+4= with their sums, in the jsonl format of the data guide."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    random.Random(seed).shuffle(pairs)
    rows = [{"prompt": f"{a}+{b}=", "label": str(a + b)} for a, b in pairs[:count]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(*words: object) -> subprocess.Popen:
    """The command in a process of its own, its output collected."""
    command = [sys.executable, "-m", "slime_train.cli", *map(str, words)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "RAY_"))}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


def run(*words: object, expect: int = 0) -> str:
    """Run to the end; the output. Fails with it when the exit code is another."""
    process = start(*words)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"no end after {TIMEOUT_S} s:\n{output}") from None
    assert process.returncode == expect, output
    return output


def metrics(output_dir: Path) -> list[dict]:
    """Every line of metrics.jsonl."""
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def series(output_dir: Path, name: str) -> dict[int, float]:
    """Step -> value of one metric; of repeated steps the last."""
    return {row["step"]: row[name] for row in metrics(output_dir) if name in row}
