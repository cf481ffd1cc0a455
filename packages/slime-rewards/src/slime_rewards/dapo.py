"""The reward of DAPO: ``--rm-type dapo``, a dictionary whose ``score`` is +1 or -1."""

import re
from fractions import Fraction
from typing import Any

from slime_rewards.boxed import last_boxed

_TAIL = 300
_HUGE = re.compile(r"(?i)e[-+]?[\d_]{5}")
"""Numbers that take for ever, and all memory, to write out."""
_FORMULA = re.compile(r"(?<!\\)\$(.+?)(?<!\\)\$")
_ANSWER = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")
_REMOVED = ("\\left", "\\right", "\\!", "\\,", "\\ ", "\\$", "$", "\\%", "%", ".\\", "\\text{}")
_UNITS = re.compile(
    r"\b(square|units?|degrees?|dollars?|cents?|cm|mm|km|meters?|feet|inch(?:es)?|hours?|minutes?"
    r"|seconds?|ways|integers|points?|mph|miles?|students?|people)\b|\^\\circ|\^\{\\circ\}"
)


def grade(response: str, label: str) -> dict[str, Any]:
    """Score, whether it is right, and what was understood.

    Only the last 300 characters count; the answer is what follows the last ``Answer:`` there, or
    the box or first formula in it.
    Use with ``--reward-key score``.
    Source: DAPO, arXiv:2503.14476, section 2.4.

    Raises:
        ValueError: there is nothing in the label but units and signs.
    """
    expected = normalized(label)
    if not expected:
        raise ValueError(f"the label {label!r} is empty: an answer of nothing would be right")
    found = _ANSWER.findall(response[-_TAIL:])
    said = _readings(found[-1]) if found else ["[INVALID]"]
    answer = next((each for each in said if _same(each, expected)), said[0])
    right = _same(answer, expected)
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": answer}


def _readings(text: str) -> list[str]:
    """The answer as it stands, and the first formula of a sentence."""
    formula = _FORMULA.search(text)
    return [normalized(text)] + ([] if formula is None else [normalized(formula[1])])


def normalized(text: str) -> str:
    """An answer without its box, units, dollar signs, text commands and spaces."""
    text = (last_boxed(text) or text).split("=")[-1]
    text = re.sub(r"\\(?:text|textbf|mathrm|boxed|overline)\{([^{}]*)\}", r"\1", text)
    text = _UNITS.sub("", text)
    for piece in _REMOVED:
        text = text.replace(piece, "")
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac([^{}\s])([^{}\s])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*([^{\[\s\\])", r"\\sqrt{\1}", text)
    text = re.sub(r"\s+", "", text).strip(".,*")
    return text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", text) else text


def _same(answer: str, expected: str) -> bool:
    if answer == expected:
        return True
    if _HUGE.search(answer) or _HUGE.search(expected):
        return False
    try:
        return Fraction(answer) == Fraction(expected)
    except (ValueError, ZeroDivisionError):
        return False
