"""A retriever that needs nothing but a text file: Okapi BM25 over its lines."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_WORD = re.compile(r"\w+")
_K1, _B = 1.5, 0.75


def words(text: str) -> list[str]:
    """What is compared: words in lower case."""
    return _WORD.findall(text.lower())


class Retriever:
    """Scores passages by the words they share with a query.

        sum over query words of idf(w) * f (k1 + 1) / (f + k1 (1 - b + b |passage| / mean))

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009, section 3.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        self._passages = list(passages)
        self._counts = [Counter(words(passage)) for passage in passages]
        lengths = [sum(counts.values()) for counts in self._counts]
        mean = sum(lengths) / max(1, len(lengths))
        self._norms = [_K1 * (1 - _B + _B * length / mean) for length in lengths]
        spread = Counter(word for counts in self._counts for word in counts)
        total = len(self._passages)
        self._idf = {w: math.log(1 + (total - n + 0.5) / (n + 0.5)) for w, n in spread.items()}

    @classmethod
    def of_file(cls, path: Path) -> "Retriever":
        """One passage a line."""
        return cls(path.read_text(encoding="utf-8").splitlines())

    def search(self, query: str, num_passages: int = 1) -> list[str]:
        """The passages that fit best, best first; none that shares no word with the query."""
        terms = words(query)
        scores = [self._score(terms, place) for place in range(len(self._passages))]
        ranked = sorted(range(len(scores)), key=lambda place: -scores[place])
        return [self._passages[place] for place in ranked[:num_passages] if scores[place] > 0]

    def _score(self, terms: Sequence[str], place: int) -> float:
        counts, norm = self._counts[place], self._norms[place]
        found = ((self._idf[term], counts[term]) for term in terms if term in counts)
        return sum(idf * count * (_K1 + 1) / (count + norm) for idf, count in found)
