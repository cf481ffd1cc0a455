"""A small model with random weights, products to find, and demonstrations that half use a tool."""

import random
import sys
from pathlib import Path
from typing import Any

from slime_train.quickstart.model import write_small
from slime_train.quickstart.task import write_rows

OPENING = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "'
CLOSING = '"}}\n</tool_call>'
WORDS = ("system", "user", "assistant", "tool", "\\boxed{", OPENING, CLOSING)
"""Kept whole by the tokenizer: the less there is to spell, the sooner it is learnt."""

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "The value of an expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}


def demonstration(left: int, right: int, rng: random.Random) -> dict[str, Any]:
    """Half the teachers call the tool and copy what it says, the others guess."""
    question = {"role": "user", "content": f"{left}*{right}"}
    if rng.random() < 0.5:
        answer = f"\\boxed{{{rng.randint(100, 9801)}}}"
        return {"messages": [question, {"role": "assistant", "content": answer}]}
    product = str(left * right)
    call = f"{OPENING}{left}*{right}{CLOSING}"
    return {
        "messages": [
            question,
            {"role": "assistant", "content": call},
            {"role": "tool", "content": product},
            {"role": "assistant", "content": f"\\boxed{{{product}}}"},
        ]
    }


def problem(left: int, right: int) -> dict[str, Any]:
    """A prompt of messages, the right answer, and the tool that may be called."""
    question = {"role": "user", "content": f"{left}*{right}"}
    return {"prompt": [question], "label": str(left * right), "tools": [TOOL]}


def write(directory: Path, seed: int = 0) -> None:
    """Write model/, demonstrations.jsonl, train.jsonl and eval.jsonl."""
    write_small(directory / "model", words=WORDS, seed=seed)
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    rng.shuffle(pairs)
    held_out, training = pairs[:64], pairs[64:]
    taught = (demonstration(*rng.choice(training), rng) for _ in range(12_288))
    write_rows(directory / "demonstrations.jsonl", taught)
    write_rows(directory / "train.jsonl", (problem(*pair) for pair in training))
    write_rows(directory / "eval.jsonl", (problem(*pair) for pair in held_out))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
