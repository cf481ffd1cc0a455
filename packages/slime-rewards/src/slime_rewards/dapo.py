"""The reward of DAPO: ``--rm-type dapo``, a dictionary whose ``score`` is +1 or -1."""

import re
from fractions import Fraction
from typing import Any

_TAIL = 300
_ANSWER = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")
_REMOVED = ("\\left", "\\right", "\\!", "\\,", "\\ ", "\\$", "$", "\\%", "%", ".\\", "\\text{}")
_UNITS = re.compile(
    r"\b(square|units?|degrees?|dollars?|cents?|cm|mm|km|meters?|feet|inch(?:es)?|hours?|minutes?"
    r"|seconds?|ways|integers|points?|mph|miles?|students?|people)\b|\^\\circ|\^\{\\circ\}"
)


def grade(response: str, label: str) -> dict[str, Any]:
    """Score, whether it is right, and what was understood.

    Only the last 300 characters count; the answer is what follows the last ``Answer:`` there.
    Use with ``--reward-key score``.
    Source: DAPO, arXiv:2503.14476, section 2.4.
    """
    found = _ANSWER.findall(response[-_TAIL:])
    answer = normalized(found[-1]) if found else "[INVALID]"
    right = _same(answer, normalized(label))
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": answer}


def normalized(text: str) -> str:
    """An answer without units, dollar signs, text commands and spaces."""
    text = text.split("=")[-1]
    text = re.sub(r"\\(?:text|textbf|mathrm|boxed|overline)\{([^{}]*)\}", r"\1", text)
    text = _UNITS.sub("", text)
    for piece in _REMOVED:
        text = text.replace(piece, "")
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac([^{}\s])([^{}\s])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\s+", "", text).strip(".,*")
    return text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", text) else text


def _same(answer: str, expected: str) -> bool:
    if answer == expected:
        return True
    try:
        return Fraction(answer) == Fraction(expected)
    except (ValueError, ZeroDivisionError):
        return False
