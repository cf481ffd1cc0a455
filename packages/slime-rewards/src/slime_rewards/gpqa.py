"""Multiple choice by a letter: ``--rm-type gpqa``."""

import re
import string
from collections.abc import Sequence
from typing import Any

from slime_core.scores import is_answer

from slime_rewards.boxed import last_boxed
from slime_rewards.math import without_markup
from slime_rewards.verdict import label_text

_CHOICES = 8
_END_OF_THOUGHT = "</think>"
_THOUGHTS = re.compile(rf"<think>.*?{_END_OF_THOUGHT}", re.DOTALL)
_MARKUP = re.compile(r"[*_`$]|\\[()\[\]]")
_BLANKS = re.compile(r"\s+")
_BOUNDARY = r"(?![A-Za-z0-9'\u2019])"
_STATED = (
    r"(?:final\s+answer|correct\s+(?:answer|option|choice)|answer|option|choice)"
    r"\s*(?:(?:is|:|=|\uff1a)\s*)+(?:option|choice)?\s*[(\[]?\s*([A-Z])[)\]]?"
)
_SAID = re.compile(rf"(?i:{_STATED.replace('[A-Z]', '[A-Za-z]')}){_BOUNDARY}")
_ALONE = re.compile(r"\(?([A-Za-z])[).:]?(?:\s.*)?", re.DOTALL)
_LINE = re.compile(r"(?m)^\s*\(?([A-Z])[).:]?\s*$")
_MENTIONED = re.compile(rf"(?<![A-Za-z0-9'\u2019(\\])\(?([A-Z])\)?{_BOUNDARY}")


def grade(response: str, label: object, metadata: dict[str, Any]) -> float:
    """1 where the answer is the right letter, or the text of the right choice, else 0.

    The right letter is ``metadata["correct_letter"]``, else the label: a letter, or the text of
    one of ``metadata["choices"]`` (a list, or letter to text). Letters that may be chosen are
    ``metadata["valid_letters"]``, the choices', or the first eight.

    Raises:
        ValueError: what is right cannot be known.
    """
    label = label_text(label) if is_answer(label) else None
    choices = _choices(metadata.get("choices"))
    valid = [str(letter).upper() for letter in metadata.get("valid_letters") or choices]
    valid = valid or list(string.ascii_uppercase[:_CHOICES])
    right = _right(metadata.get("correct_letter"), label, choices, valid)
    answer = final(response)
    letter = chosen(answer, valid)
    if letter is not None:
        return float(letter == right)
    text = _plain(choices.get(right, label or ""))
    others = [_plain(other) for key, other in choices.items() if key != right]
    said = _plain(last_boxed(answer) or answer)
    if not text or any(other and _has(said, other) and not _has(text, other) for other in others):
        return 0.0
    return float(_has(said, text) and not (len(text) == 1 and said != text))


def final(response: str) -> str:
    """What a response says after its thoughts."""
    head, mark, tail = response.rpartition(_END_OF_THOUGHT)
    # The tail may begin thoughts without number, each of which would be followed to its end.
    answer = _THOUGHTS.sub("", head + mark) + tail
    return answer.rpartition(_END_OF_THOUGHT)[2].strip()


def chosen(answer: str, valid: Sequence[str]) -> str | None:
    """The letter an answer settles on: a box, what it says is the answer, a line, a mention."""
    boxed = last_boxed(answer)
    if boxed is not None:
        found = _ALONE.fullmatch(_unmarked(boxed).strip())
        if found and found[1].upper() in valid:
            return found[1].upper()
    plain = _blanks_once(_unmarked(answer))
    for pattern in (_SAID, _LINE, _MENTIONED):
        letters = [letter.upper() for letter in pattern.findall(plain)]
        letters = [letter for letter in letters if letter in valid]
        if pattern is _MENTIONED:
            letters = [x for x in letters if x not in "AI" or len(plain) <= _SHORT]
        if letters:
            return letters[-1]
    return None


def _unmarked(text: str) -> str:
    """Text without marks of Markdown and of formulas, and without commands that set its type."""
    return _MARKUP.sub("", without_markup(text))


def _blanks_once(text: str) -> str:
    """One line break or one space in place of many: patterns take for ever to give up on many."""
    return _BLANKS.sub(lambda found: "\n" if "\n" in found[0] else " ", text)


_SHORT = 12
"""An ``A`` or ``I`` in longer text is a word."""


def _choices(given: Any) -> dict[str, str]:
    if isinstance(given, dict):
        # A table with a column for every letter has nulls where a question has fewer choices.
        return {str(key).upper(): str(text) for key, text in given.items() if text is not None}
    return dict(zip(string.ascii_uppercase, map(str, given or ()), strict=False))


def _right(letter: Any, label: str | None, choices: dict[str, str], valid: Sequence[str]) -> str:
    if letter is not None:
        return _valid(letter, valid)
    if label is None or not _plain(label):
        raise ValueError("a multiple choice needs a label or metadata['correct_letter']")
    bare = label.strip().strip("()[].:").upper()
    if bare in valid:
        return bare
    for key, text in choices.items():
        if _plain(text) == _plain(label):
            return key
    if choices:
        raise ValueError(f"label {label!r} is none of the letters {valid} and none of the choices")
    return ""


def _valid(letter: Any, valid: Sequence[str]) -> str:
    bare = str(letter).strip().strip("()[].:").upper()
    if bare not in valid:
        raise ValueError(f"correct_letter {letter!r} is none of the letters {list(valid)}")
    return bare


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s.+\-/^=]", " ", text.casefold()).split()).rstrip(".")


def _has(text: str, part: str) -> bool:
    return f" {part} " in f" {text} "
