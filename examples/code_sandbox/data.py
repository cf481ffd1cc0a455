"""A small model with random weights, functions to write, and demonstrations by a careless hand."""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OPENING, CLOSING = "```python\ndef f(x):\n    return x", "\n```"
WORDS = ("system", "user", "assistant", OPENING, CLOSING)
"""Kept whole by the tokenizer: the less there is to spell, the sooner it is learnt."""
DIGIT_ERROR_RATE = 0.3
Problem = tuple[str, int]
"""An operation and what it is done with."""


def problems() -> list[Problem]:
    """x+10 to x*99."""
    return [(operation, number) for operation in "+-*" for number in range(10, 100)]


def program(operation: str, number: str) -> str:
    """An answer as the model writes it."""
    return f"{OPENING}{operation}{number}{CLOSING}"


def tests(operation: str, number: int) -> list[str]:
    """What the function must do; ``--rm-type code`` runs it in a sandbox."""
    values = {
        "+": (number, 7 + number),
        "-": (-number, 7 - number),
        "*": (0, 7 * number),
    }
    at_0, at_7 = values[operation]
    return [f"assert f(0) == {at_0}", f"assert f(7) == {at_7}"]


def prompt_row(problem: Problem) -> dict[str, Any]:
    """A prompt and its tests."""
    operation, number = problem
    return {"prompt": f"x{operation}{number}", "label": tests(operation, number)}


def demonstration(problem: Problem, rng: random.Random) -> dict[str, Any]:
    """Each digit of the number is wrong now and then."""
    operation, number = problem
    digits = "".join(
        str(rng.randint(0, 9)) if rng.random() < DIGIT_ERROR_RATE else digit
        for digit in str(number)
    ).lstrip("0")
    messages = [
        {"role": "user", "content": f"x{operation}{number}"},
        {"role": "assistant", "content": program(operation, digits or "0")},
    ]
    return {"messages": messages}


def write(directory: Path, seed: int = 0) -> None:
    """Write model/ and data/."""
    from slime_train.quickstart.model import write_small

    write_small(directory / "model", words=WORDS, seed=seed)
    rng = random.Random(seed)
    shuffled = problems()
    rng.shuffle(shuffled)
    held_out, training = shuffled[:32], shuffled[32:]
    data = directory / "data"
    data.mkdir(exist_ok=True)
    taught = (demonstration(rng.choice(training), rng) for _ in range(12_288))
    write_rows(data / "demonstrations.jsonl", taught)
    write_rows(data / "train.jsonl", map(prompt_row, training))
    write_rows(data / "eval.jsonl", map(prompt_row, held_out))


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
