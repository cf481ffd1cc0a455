"""What a progress bar says of the samples that have come back so far."""

import time
from collections.abc import Callable, Mapping, Sequence

from slime_core.types import Sample

ShowProgress = Callable[[int, int, Mapping[str, float]], None]
"""(groups or samples done, of how many, running statistics)."""


class RunningStatistics:
    """Sums, so that a sample is looked at once, however often somebody asks."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._num_samples = self._num_scores = self._num_tokens = 0
        self._score = 0.0

    def add(self, samples: Sequence[Sample]) -> None:
        """These have come back."""
        scores = [float(s.reward) for s in samples if isinstance(s.reward, int | float)]
        self._num_samples += len(samples)
        self._num_tokens += sum(sample.response_length for sample in samples)
        self._num_scores += len(scores)
        self._score += sum(scores)

    def values(self) -> dict[str, float]:
        """Mean reward and response length, and tokens per second since the beginning."""
        if not self._num_samples:
            return {}
        seconds = max(1e-9, time.monotonic() - self._began)
        found = {
            "response_len": self._num_tokens / self._num_samples,
            "tok/s": self._num_tokens / seconds,
        }
        return found | ({"reward": self._score / self._num_scores} if self._num_scores else {})
