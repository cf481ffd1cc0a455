"""Additions without a carry, as data files."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_HELD_OUT = 198
"""A tenth of the problems."""
NUM_DEMONSTRATIONS = 20_480
DIGIT_ERROR_RATE = 0.3
"""Of the teacher who wrote the demonstrations."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Two numbers to add."""

    left: int
    right: int

    @property
    def question(self) -> str:
        """What the user says."""
        return f"{self.left}+{self.right}=?"

    @property
    def total(self) -> str:
        """The right answer."""
        return str(self.left + self.right)


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """Where the three files of the task are."""

    train: Path
    evaluation: Path
    demonstrations: Path


def problems() -> list[Problem]:
    """All sums of two two-digit numbers in which neither column reaches ten."""
    numbers = range(10, 100)
    return [
        Problem(a, b)
        for a in numbers
        for b in numbers
        if a // 10 + b // 10 <= 9 and a % 10 + b % 10 <= 9
    ]


def careless(total: str, rng: random.Random) -> str:
    """The teacher's answer: each digit is another one with probability ``DIGIT_ERROR_RATE``."""
    return "".join(
        rng.choice([other for other in "0123456789" if other != digit])
        if rng.random() < DIGIT_ERROR_RATE
        else digit
        for digit in total
    )


def write_task(directory: Path, *, seed: int) -> TaskFiles:
    """Split the problems at random, let the teacher answer the training half, write the files."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    shuffled = problems()
    rng.shuffle(shuffled)
    held_out, training = shuffled[:NUM_HELD_OUT], shuffled[NUM_HELD_OUT:]
    files = TaskFiles(
        directory / "train.jsonl", directory / "eval.jsonl", directory / "demonstrations.jsonl"
    )
    write_rows(files.train, map(_prompt_row, training))
    write_rows(files.evaluation, map(_prompt_row, held_out))
    taught = [rng.choice(training) for _ in range(NUM_DEMONSTRATIONS)]
    write_rows(files.demonstrations, (_demonstration_row(problem, rng) for problem in taught))
    return files


def _prompt_row(problem: Problem) -> dict[str, Any]:
    return {"prompt": problem.question, "label": problem.total}


def _demonstration_row(problem: Problem, rng: random.Random) -> dict[str, Any]:
    answer = f"\\boxed{{{careless(problem.total, rng)}}}"
    return {
        "messages": [
            {"role": "user", "content": problem.question},
            {"role": "assistant", "content": answer},
        ]
    }


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
