"""What a progress bar says of the samples that have come back so far."""

import time
from collections.abc import Callable, Mapping, Sequence

from slime_core.types import Sample

ShowProgress = Callable[[int, int, Mapping[str, float]], None]
"""(groups or samples done, of how many, running statistics)."""


def running_statistics(samples: Sequence[Sample], began: float) -> dict[str, float]:
    """Mean reward and response length, and tokens per second since ``began`` (monotonic)."""
    if not samples:
        return {}
    lengths = [sample.response_length for sample in samples]
    scores = [float(s.reward) for s in samples if isinstance(s.reward, int | float)]
    seconds = max(1e-9, time.monotonic() - began)
    found = {"response_len": sum(lengths) / len(samples), "tok/s": sum(lengths) / seconds}
    return found | ({"reward": sum(scores) / len(scores)} if scores else {})
