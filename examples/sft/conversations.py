"""Make conversations of three questions each; some of the answers are not to be learnt from."""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def conversation(rows: Sequence[dict[str, str]], chance: random.Random) -> dict[str, Any]:
    """Questions and answers in turns, in half of them one that is wrong and not to be learnt."""
    messages: list[dict[str, Any]] = []
    wrong = chance.randrange(2 * len(rows))
    for turn, row in enumerate(rows):
        spoilt = turn == wrong
        answer = row["label"][::-1] if spoilt else row["label"]
        messages.append({"role": "user", "content": row["prompt"]})
        reply = {"role": "assistant", "content": f"\\boxed{{{answer}}}"}
        messages.append({**reply, "step_loss_mask": int(not spoilt)})
    return {"messages": messages}


def write(source: Path, target: Path, *, count: int = 3_000) -> None:
    """Draw ``count`` conversations from the prompts in ``source``."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    chance = random.Random(0)
    with target.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps(conversation(chance.sample(rows, 3), chance)) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
