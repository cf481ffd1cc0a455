"""Whole runs of ``slime-train`` as a user starts them, and what they leave behind."""

import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

TIMEOUT_S = 500
MARK = "SLIME_TEST_MARK"


def write_sums(path: Path, count: int, seed: int = 0) -> Path:
    """Prompts such as 3+4= with their sums, in the jsonl format of the data guide."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    random.Random(seed).shuffle(pairs)
    rows = [{"prompt": f"{a}+{b}=", "label": str(a + b)} for a, b in pairs[:count]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


HOLDING = """
import asyncio
import time
from pathlib import Path

HERE = Path(__file__).parent


def is_held(number):
    if number not in {iterations}:
        return False
    (HERE / f"at-{{number}}").touch()
    return not (HERE / f"go-{{number}}").exists()


def training(args, rollout_id, step_id, model, optimizer, opt_param_scheduler):
    while is_held(rollout_id):
        time.sleep(0.05)


async def generating(args, sample, *, rollout_id=None, evaluation=False):
    while not evaluation and is_held(rollout_id):
        await asyncio.sleep(0.05)
"""


class Hold:
    """Iterations that do not end before they may, so that what a test does cannot come too late."""

    def __init__(self, directory: Path, *iterations: int) -> None:
        """``directory`` is for nothing else."""
        directory.mkdir(parents=True)
        self._directory = directory
        self._file = directory / "hold.py"
        self._file.write_text(HOLDING.format(iterations=iterations))

    @property
    def training(self) -> list[str]:
        """Flags: every rank waits before the first step of the iterations."""
        return ["--custom-megatron-before-train-step-hook-path", f"{self._file}:training"]

    @property
    def generating(self) -> list[str]:
        """Flags: samples that are whole wait before they are scored."""
        return ["--rollout-sample-hook-path", f"{self._file}:generating"]

    def is_at(self, iteration: int) -> bool:
        """Whether anybody waits there, or has waited."""
        return (self._directory / f"at-{iteration}").exists()

    def end(self, iteration: int) -> None:
        """Let it go on, now and whenever it comes again."""
        (self._directory / f"go-{iteration}").touch()


class Run(subprocess.Popen):
    """The command in a process of its own, its output collected; descendants carry ``mark``."""

    def __init__(self, *words: object, ray_address: str | None = None) -> None:
        self.mark = uuid.uuid4().hex
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "RAY_"))}
        if ray_address is not None:
            env["RAY_ADDRESS"] = ray_address
        super().__init__(
            [sys.executable, "-m", "slime_train.cli", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env | {MARK: self.mark},
        )


def carriers(mark: str) -> list[str]:
    """Names of the live processes that descend from the run with this mark."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
            ):
                found.append((entry / "cmdline").read_text().replace("\0", " ")[:200])
        except OSError:  # gone meanwhile
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` came true in time."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met


def run(*words: object, expect: int = 0) -> str:
    """Run to the end; the output. Fails with it when the exit code is another."""
    process = Run(*words)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"no end after {TIMEOUT_S} s:\n{output}") from None
    assert process.returncode == expect, output
    assert wait_for(lambda: not carriers(process.mark), 60), carriers(process.mark)
    return output


def metrics(output_dir: Path) -> list[dict]:
    """Every line of metrics.jsonl."""
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def series(output_dir: Path, name: str) -> dict[int, float]:
    """Step -> value of one metric; of repeated steps the last."""
    return {row["step"]: row[name] for row in metrics(output_dir) if name in row}
