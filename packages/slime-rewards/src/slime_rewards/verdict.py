"""What became of grading one response: a value, an abstention or an error; never a silent 0."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

RewardValue = float | dict[str, Any]
Label = str | float | dict[str, Any] | None
"""Text, or what no answer can equal: a dictionary, NaN, nothing."""
Grade = Callable[[str, str, dict[str, Any]], Any]
"""(response, label, metadata) -> a number, or a dictionary with numbers."""


class Outcome(StrEnum):
    """How grading ended."""

    VALUE = "value"
    ABSTENTION = "abstention"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A value has a reward; an abstention (too late) and an error say why there is none."""

    outcome: Outcome
    reward: RewardValue | None = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a worker: ``grader`` is a name of ``graders`` or path to a function."""

    grader: str
    response: str
    label: Label = None
    metadata: dict[str, Any]


def sent_label(label: object) -> Label:
    """A label as it can be sent to a process: text, or what a grader that compares refuses."""
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return label
    if isinstance(label, dict):
        return json.loads(json.dumps(label, default=str, skipkeys=True))
    return label_text(label)


def label_text(label: object) -> str:
    """A label as graders get it: text as it is, lists and dictionaries as JSON."""
    return json.dumps(label) if isinstance(label, list | dict) else str(label)


def checked(value: object, keys: Sequence[str] = ()) -> RewardValue:
    """``value`` as a reward; of a dictionary, the entries ``keys`` that it has must be numbers.

    Raises:
        TypeError: it is neither a number nor a dictionary.
        ValueError: it is not finite, or a dictionary with none of ``keys``.
    """
    if not isinstance(value, dict):
        return _number(value)
    entries = cast("dict[str, Any]", value)
    counting = [entries[key] for key in keys if key in entries]
    if keys and not counting:
        raise ValueError(
            f"a grader returned the keys {sorted(map(str, entries))}: "
            f"--reward-key asks for {' or '.join(dict.fromkeys(keys))}"
        )
    for entry in counting:
        _number(entry)
    return entries


def _number(value: object) -> float:
    try:
        number = float(cast("Any", value))
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, str):
        raise TypeError(
            f"a grader returned {value!r:.80}, of type {type(value).__name__}: "
            "return a number, or a dictionary with numbers"
        )
    if not math.isfinite(number):
        raise ValueError(f"a grader returned {number}: rewards are finite")
    return number
