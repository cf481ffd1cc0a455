"""Overlap of words with a reference: ``--rm-type f1``."""

import re
import string
from collections import Counter

_CLOSED = frozenset({"yes", "no", "noanswer"})


def grade(response: str, label: str) -> float:
    """Harmonic mean of precision and recall over normalised words.

    Yes, no and noanswer must match as a whole.
    Source: the evaluation of SQuAD, arXiv:1606.05250, with HotpotQA's rule for closed answers.
    """
    answer, expected = _words(response), _words(label)
    closed = {" ".join(answer), " ".join(expected)} & _CLOSED
    if closed and answer != expected:
        return 0.0
    shared = (Counter(answer) & Counter(expected)).total()
    return 2 * shared / (len(answer) + len(expected)) if shared else 0.0


def _words(text: str) -> list[str]:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()
