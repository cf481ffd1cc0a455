r"""The answer inside the last ``\boxed{...}`` of a response."""

import re
from collections.abc import Iterator

_BRACE = re.compile("[{}]")
_MARKER = re.compile(r"\\(?:boxed|fbox)")
_BRACED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_OPENING = re.compile("[{ ]")


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}`` or ``\boxed x``; None if there is none."""
    closing: dict[int, int] | None = None
    for opening in _openings(text):
        if text[opening] == " ":
            return text[opening:].split("$", 1)[0].split("\n", 1)[0].strip()
        closing = _closing(text) if closing is None else closing
        if opening in closing:
            return text[opening + 1 : closing[opening]].strip()
    return None


def _openings(text: str) -> Iterator[int]:
    """Where the contents of boxes begin, from the last: a brace, after blanks or none, or a blank.

    What is behind one box is not looked at again for those before it.
    """
    nearest: int | None = None
    end = len(text)
    for start in reversed([found.start() for found in _MARKER.finditer(text)]):
        found = _OPENING.search(text, start, end)
        nearest, end = nearest if found is None else found.start(), start
        braced = _BRACED.match(text, start)
        if braced is not None:
            yield braced.end() - 1
        elif nearest is not None:
            yield nearest


def _closing(text: str) -> dict[int, int]:
    """Places of opening braces and of those that close them, in one pass."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for found in _BRACE.finditer(text):
        if found[0] == "{":
            opened.append(found.start())
        elif opened:
            pairs[opened.pop()] = found.start()
    return pairs
