"""The answer is the label: ``--rm-type exact_match``."""

import re
import unicodedata

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def grade(response: str, label: str) -> float:
    """1 where response and label are the same text, else 0.

    Thoughts before ``</think>`` do not count; where there is ``<answer>...</answer>``, only the
    last one counts. Case, blanks at the ends, runs of blanks, the form of Unicode (NFKC) and a full
    stop at the end make no difference.
    """
    answer = response.rpartition("</think>")[2]
    tagged = _TAGGED.findall(answer)
    return float(_folded(tagged[-1] if tagged else answer) == _folded(label))


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).removesuffix(".").rstrip()
