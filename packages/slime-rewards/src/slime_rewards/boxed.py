r"""The answer inside the last ``\boxed{...}`` of a response."""

_MARKERS = ("\\boxed", "\\fbox")


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}`` or ``\boxed x``; None if there is none."""
    end = len(text)
    while True:
        start = max(text.rfind(marker, 0, end) for marker in _MARKERS)
        if start < 0:
            return None
        content = _content(text, start)
        if content is not None:
            return content.strip()
        end = start


def _content(text: str, start: int) -> str | None:
    opening = start
    while opening < len(text) and text[opening] not in "{ ":
        opening += 1
    if opening == len(text):
        return None
    if text[opening] == " ":
        return text[opening:].split("$")[0].split("\n")[0]
    depth = 0
    for position in range(opening, len(text)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return text[opening + 1 : position]
    return None
