"""What a run trained on and what came of it, to compare with another run."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.data.dump import read_rows

Samples = Counter[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run: digest of its final weights, and which answers to which prompts it trained on."""

    weights: str | None
    samples: Samples


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a disturbed run from the undisturbed one."""

    lost: int
    duplicated: int
    other_tokens: int
    weights_equal: bool


def outcome(directory: Path) -> Outcome:
    """What the run with ``run_flags(directory)`` has left behind."""
    return Outcome(weights_digest(directory / "hf"), trained_samples(directory / "rollouts"))


def weights_digest(directory: Path) -> str | None:
    """SHA-256 over the names and bytes of the safetensors; None when there are none."""
    paths = sorted(directory.glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if paths else None


def trained_samples(directory: Path) -> Samples:
    """Prompt, number of the answer and digest of its tokens, of every dump in ``directory``.

    An iteration that was generated again has replaced its dump: what stands there is trained.
    """
    found: Samples = Counter()
    for path in sorted(directory.glob("*.pt")):
        found.update(_key(sample) for group in read_rows(path) for sample in group["samples"])
    return found


def _key(sample: dict[str, Any]) -> tuple[str, ...]:
    tokens = hashlib.sha256(json.dumps(sample["tokens"]).encode()).hexdigest()
    prompt = json.dumps(sample["prompt"], sort_keys=True)
    return (str(sample["group_index"]), str(sample["index"]), prompt, tokens)


def compare(undisturbed: Outcome, disturbed: Outcome) -> Difference:
    """Samples are lost or duplicated by prompt and number, whatever the answer says."""
    expected, found = _by_number(undisturbed.samples), _by_number(disturbed.samples)
    apart = (undisturbed.samples - disturbed.samples).total()
    lost = (expected - found).total()
    return Difference(
        lost=lost,
        duplicated=(found - expected).total(),
        other_tokens=apart - lost,
        weights_equal=disturbed.weights is not None and disturbed.weights == undisturbed.weights,
    )


def _by_number(samples: Samples) -> Samples:
    found: Samples = Counter()
    for key, count in samples.items():
        found[key[:-1]] += count
    return found
