"""A small model with random weights, a corpus of made-up facts, and demonstrations."""

import random
import sys
from pathlib import Path
from typing import Any

from slime_train.quickstart.model import write_small
from slime_train.quickstart.task import write_rows

WORDS = (
    *("<search>", "</search>", "<information>", "</information>", "<answer>", "</answer>"),
    *(" lives in ", "Where does ", " live?"),
)
"""Kept whole by the tokenizer: the less there is to spell, the sooner it is learnt."""
TOWNS = ("Oslo", "Bern", "Rome", "Lima", "Cairo", "Quito", "Delhi", "Sofia")


def people(count: int, rng: random.Random) -> dict[str, str]:
    """Who lives where: names of five letters, towns at random, so that nobody can guess."""
    names: set[str] = set()
    while len(names) < count:
        names.add("".join(rng.choice(half) for half in ("bdklmnrst", "aeiou") * 3)[:5].capitalize())
    return {name: rng.choice(TOWNS) for name in sorted(names)}


def question(name: str) -> str:
    """What is asked; the model answers behind it."""
    return f"Where does {name} live?"


def demonstration(name: str, town: str, rng: random.Random) -> list[dict[str, Any]]:
    """Half the teachers look it up, in two steps; the others guess."""
    asked = question(name)
    if rng.random() < 0.5:
        return [{"prompt": asked, "label": f"<answer>{rng.choice(TOWNS)}</answer>"}]
    query = f"<search>{name}</search>"
    read = f"{asked}{query}<information>{name} lives in {town}</information>"
    return [
        {"prompt": asked, "label": query},
        {"prompt": read, "label": f"<answer>{town}</answer>"},
    ]


def write(directory: Path, seed: int = 0) -> None:
    """Write model/, corpus.txt, demonstrations.jsonl, train.jsonl and eval.jsonl."""
    write_small(directory / "model", words=WORDS, seed=seed)
    rng = random.Random(seed)
    facts = people(600, rng)
    names = list(facts)
    rng.shuffle(names)
    held_out, training = names[:64], names[64:]
    corpus = "".join(f"{name} lives in {town}\n" for name, town in facts.items())
    (directory / "corpus.txt").write_text(corpus, encoding="utf-8")
    # Towns of demonstrations are drawn anew: what is to be learnt is to look, not where who lives.
    taught = (demonstration(rng.choice(training), rng.choice(TOWNS), rng) for _ in range(9_000))
    write_rows(directory / "demonstrations.jsonl", (row for rows in taught for row in rows))
    for file, chosen in (("train.jsonl", training), ("eval.jsonl", held_out)):
        rows = ({"prompt": question(name), "label": facts[name]} for name in chosen)
        write_rows(directory / file, rows)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
