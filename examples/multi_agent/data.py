"""A small model with random weights, sums to find, and demonstrations of both roles."""

import random
import sys
from pathlib import Path
from typing import Any

from slime_train.quickstart.model import write_small
from slime_train.quickstart.task import Problem, careless, problems, write_rows

WORDS = ("system", "user", "assistant", "\\boxed{", "yes", "no")
"""Kept whole by the tokenizer: the less there is to spell, the sooner it is learnt."""


def demonstration(problem: Problem, rng: random.Random) -> dict[str, Any]:
    """A solver that is often wrong, or a checker that is right nine times of ten."""
    guess = careless(problem.total, rng)
    if rng.random() < 0.5:
        asked, answer = problem.question, f"\\boxed{{{guess}}}"
    else:
        right_verdict = (guess == problem.total) == (rng.random() < 0.9)
        asked, answer = f"{problem.question[:-1]}{guess}?", "yes" if right_verdict else "no"
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    }


def row(problem: Problem) -> dict[str, Any]:
    """A prompt of messages and the right answer."""
    return {"prompt": [{"role": "user", "content": problem.question}], "label": problem.total}


def write(directory: Path, seed: int = 0) -> None:
    """Write model/, demonstrations.jsonl, train.jsonl and eval.jsonl."""
    write_small(directory / "model", words=WORDS, seed=seed)
    rng = random.Random(seed)
    chosen = problems()
    rng.shuffle(chosen)
    held_out, training = chosen[:64], chosen[64:]
    taught = (demonstration(rng.choice(training), rng) for _ in range(20_480))
    write_rows(directory / "demonstrations.jsonl", taught)
    write_rows(directory / "train.jsonl", map(row, training))
    write_rows(directory / "eval.jsonl", map(row, held_out))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
