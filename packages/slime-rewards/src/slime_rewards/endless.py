"""Expressions that algebra takes for ever to read: too long, or too deep within each other.

Nobody who knows the answer writes it so. Found before anything is read, they are wrong; a grader
that ran into its deadline would leave them without a reward.
"""

import re
from collections import Counter

_LONGEST_IN_PROSE = 1_000
"""Characters of a formula; derivations are longer than answers, and take no more than seconds."""
_OPEN_BOX = re.compile(r"\\boxed(?=\{.+\})", re.DOTALL)
_FORMULA = re.compile(
    r"\$\$.+?\$\$|\\\[.+?\\\]|(?<![\\\d])\$[^$\n]+\$|\\\([^\n]+?\\\)|\s\[[^\n\[\]]+\]\s"
    r"|[\d.\s+\-*/^()×÷]+",  # noqa: RUF001 -- a sign that is meant
    re.DOTALL,
)
"""What math-verify takes for an expression in a text, as near as one pass over it tells."""
_MARK = re.compile(r"(\^?)\s*([(\[{])|[)\]}]")
_MOST = {"length": 500, "brackets": 6, "exponents": 5, "bars": 16, "braces": 40}
"""Math-verify takes a second or two at these; for every further bracket twice as long."""


def is_endless(text: str, label: str, *, longest: int = _MOST["length"]) -> bool:
    """Return whether ``text`` is beyond what is read, and beyond the label as well.

    ``longest``: characters that are read; twice the label's at least.
    """
    if len(text) > max(longest, 2 * len(label)):
        return True
    found, wanted = measured(text), measured(label)
    return any(size > max(_MOST[kind], wanted[kind]) for kind, size in found.items())


def without_endless(text: str, label: str) -> str:
    """Return prose without the formulas in it that are endless: none of them is the answer.

    What else it says is read, as it is where a formula cannot be. A box that is never closed would
    be read to the last brace there is.
    """
    for box in _OPEN_BOX.finditer(text):
        if is_endless(text[box.end() :], label, longest=_LONGEST_IN_PROSE):
            text = text.replace("\\boxed", "")
            break
    return _FORMULA.sub(lambda found: _kept(found[0], label), text)


def _kept(formula: str, label: str) -> str:
    return " " if is_endless(formula, label, longest=_LONGEST_IN_PROSE) else formula


def measured(text: str) -> Counter[str]:
    """Return how many of each kind are within each other, at most, and how many bars there are."""
    deepest, now, opened = Counter[str](), Counter[str](), list[str]()
    for mark in _MARK.finditer(text):
        if mark[2]:
            kind = "exponents" if mark[1] else "braces" if mark[2] == "{" else "brackets"
            opened.append(kind)
            now[kind] += 1
            deepest[kind] = max(deepest[kind], now[kind])
        elif opened:
            now[opened.pop()] -= 1
    deepest["bars"] = text.count("|")
    return deepest
