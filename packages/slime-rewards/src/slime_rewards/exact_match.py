"""The answer is the label: ``--rm-type exact_match``."""

import re
import unicodedata

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)


def grade(response: str, label: str) -> float:
    """1 where response and label are the same text, else 0.

    Thoughts before ``</think>`` do not count; where there is ``<answer>...</answer>``, only the
    last one counts. Case, blanks at the ends, runs of blanks, the form of Unicode (NFKC) and a full
    stop at the end make no difference.
    """
    answer = response.rpartition("</think>")[2]
    tagged = _last_tagged(answer)
    return float(_folded(answer if tagged is None else tagged) == _folded(label))


def _last_tagged(text: str) -> str | None:
    """What the last pair of tags encloses, found in one pass; None if there is no pair."""
    begin, found = None, None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            begin = tag.end() if begin is None else begin
        elif begin is not None:
            begin, found = None, text[begin : tag.start()]
    return found


def _folded(text: str) -> str:
    """A full stop that is all there is stays: nothing must not be right."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.removesuffix(".").rstrip() or text
