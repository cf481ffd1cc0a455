r"""Whether a response gives the label's value: ``--rm-type math``.

Most answers are settled by comparing text or plain numbers. The rest goes to the math-verify
library, which may take for ever on a hostile expression and therefore runs in ``workers``.
"""

import functools
import re
from fractions import Fraction
from typing import Any, cast

from slime_rewards.boxed import last_boxed
from slime_rewards.endless import is_endless, without_endless
from slime_rewards.symbols import spelled

_TAIL = 3_000
"""Characters of a response without a box in which an answer is looked for."""
_LONGEST_NUMBER = 1_000
"""Characters; Python reads integers of some thousand digits at most."""
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = re.compile(rf"([-+]?)({_INTEGER}(?:\.\d*)?|\.\d+)")
# Without braces LaTeX takes one digit: \frac123 is a half, times three.
_RATIO = re.compile(r"([-+]?)(?:(\d+)/(\d+)|\\frac(?:\{(\d+)\}|(\d))(?:\{(\d+)\}|(\d)))")
_SCIENTIFIC = re.compile(r"([-+]?)([1-9](?:\.\d+)?)\\(?:times|cdot)10\^(?:\{([-+]?\d{1,3})\}|(\d))")
_NOISE = re.compile(r"\\(?:left|right|!|,|;|displaystyle|mathrm|rm)(?![a-zA-Z])|[$\s]")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it))\{([^{}]*)\}")
_PERCENT = re.compile(r"(?<=\d)\\?%$")
_ASSIGNED = re.compile(r"[a-zA-Z]=(?=[^=])")


def settle(response: str, label: str) -> float | None:
    """1 or 0 where plain text or plain numbers decide, None where algebra has to.

    The answer is the last box of the response, or all of it when there is none. A label may be
    boxed, too.

    Raises:
        ValueError: there is nothing in the label.
    """
    boxed = last_boxed(response)
    answer = _normalized(final(response) if boxed is None else boxed)
    expected = _normalized(target(label))
    if not expected:
        raise ValueError(f"the label {label!r} is empty: an answer of nothing would be right")
    if answer == expected:
        return 1.0
    given, wanted = _number(answer), _number(expected)
    if given is not None and wanted is not None:
        return float(given == wanted)
    return 0.0 if not answer else None


def target(label: str) -> str:
    """What the label says the answer is."""
    boxed = last_boxed(label)
    return label if boxed is None else boxed


def final(response: str) -> str:
    """What stands behind the thoughts."""
    return response.rpartition("</think>")[2]


def verify(response: str, label: str) -> float:
    """1 where math-verify finds response and label equal; may take for ever.

    Where the label is a number, the answer must be one as well: ``5+7`` is not the answer to what
    is 5+7, though it has the right value. An answer that is too long or nested too deeply to be
    read is wrong.
    """
    import math_verify

    parse = functools.partial(cast("Any", math_verify.parse), parsing_timeout=None)
    expected = spelled(target(label))
    boxed = last_boxed(response)
    if boxed is None:
        text = without_endless(spelled(final(response)[-_TAIL:]), expected)
    else:
        text = spelled(f"$\\boxed{{{boxed}}}$")
        if is_endless(text, expected):
            return 0.0
    gold = parse(f"${expected}$") or parse(expected)
    found = parse(text)
    if not gold or not found:
        return 0.0
    if _is_number(gold[0]) and not _is_number(found[0]):
        return 0.0
    return float(math_verify.verify(gold, found, timeout_seconds=None))


def _is_number(expression: Any) -> bool:
    """A number as written, or something said to equal one; nothing left to compute.

    ``x < 3`` is a set of numbers, which may be written in many ways.
    """
    if getattr(expression, "rel_op", None) == "==":
        expression = expression.rhs
    return bool(getattr(expression, "is_Number", False))


def _normalized(text: str) -> str:
    text = _TEXT.sub(r"\1", spelled(text))
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("{,}", ",")
    text = _PERCENT.sub("", _NOISE.sub("", text).rstrip("."))
    return _ASSIGNED.sub("", text, count=1) if _ASSIGNED.match(text) else text


def _number(text: str) -> Fraction | None:
    if len(text) > _LONGEST_NUMBER:
        return None
    found = _DECIMAL.fullmatch(text)
    if found:
        return _signed(found[1], Fraction(found[2].replace(",", "")))
    found = _RATIO.fullmatch(text)
    if found and (denominator := int(found[3] or found[6] or found[7])):
        numerator = int(found[2] or found[4] or found[5])
        return _signed(found[1], Fraction(numerator, denominator))
    found = _SCIENTIFIC.fullmatch(text)
    if found:
        return _signed(found[1], Fraction(f"{found[2]}e{found[3] or found[4]}"))
    return None


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value


def grade(response: str, label: str) -> float:
    """1 for a right answer, else 0; may take for ever."""
    settled = settle(response, label)
    return verify(response, label) if settled is None else settled


def without_markup(text: str) -> str:
    """Text without commands that only set its type."""
    return _TEXT.sub(r"\1", text).replace("$", "").strip()
