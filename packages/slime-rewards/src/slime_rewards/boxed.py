r"""The answer inside the last ``\boxed{...}`` of a response."""

import re

_BRACE = re.compile("[{}]")
_MARKERS = ("\\boxed", "\\fbox")
_BRACED = re.compile(r"\\(?:boxed|fbox)\s*\{")


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}`` or ``\boxed x``; None if there is none."""
    closing: dict[int, int] | None = None
    end = len(text)
    while True:
        start = max(text.rfind(marker, 0, end) for marker in _MARKERS)
        if start < 0:
            return None
        opening = _opening(text, start)
        if opening is not None and text[opening] == " ":
            return text[opening:].split("$", 1)[0].split("\n", 1)[0].strip()
        if opening is not None:
            closing = _closing(text) if closing is None else closing
            if opening in closing:
                return text[opening + 1 : closing[opening]].strip()
        end = start


def _opening(text: str, start: int) -> int | None:
    """Where the content of a box begins: a brace, after blanks or none, or else a blank."""
    braced = _BRACED.match(text, start)
    if braced is not None:
        return braced.end() - 1
    found = [place for sign in "{ " if (place := text.find(sign, start)) >= 0]
    return min(found, default=None)


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
