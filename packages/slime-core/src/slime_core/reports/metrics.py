"""Numbers about finished samples, under the names their readers know."""

import math
import statistics
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from slime_core.config.tracking import TrackingConfig
from slime_core.scores import reward_value
from slime_core.types import Sample, Status

_REPETITION_WINDOW = 10_000
_REPETITION_RATIO = 10


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, max and min; empty for no values."""
    if not values:
        return {}
    return {
        "mean": statistics.fmean(values),
        "median": float(statistics.median(values)),
        "max": float(max(values)),
        "min": float(min(values)),
    }


def sample_metrics(samples: Sequence[Sample], *, reward_key: str | None = None) -> dict[str, float]:
    """What a rollout or an evaluation reports about its samples, without a prefix.

    raw_reward                     mean over the executions that have one
    response_len/{mean,...}        trained tokens of a response
    truncated_ratio, failed_ratio  share of samples cut off by a length limit, or broken
    repetition_frac                share of responses that repeat themselves
    zero_std/count_{reward}        groups all of whose executions got that reward

    The segments of one execution share a ``rollout_id``; their mean is its reward.
    """
    if not samples:
        return {}
    lengths = [float(sample.effective_response_length) for sample in samples]
    rewards = _of_executions(_scored(samples, reward_key))
    metrics = _prefixed("response_len/", summarize(lengths))
    metrics["truncated_ratio"] = _share(sample.status is Status.TRUNCATED for sample in samples)
    metrics["failed_ratio"] = _share(sample.status is Status.FAILED for sample in samples)
    metrics["repetition_frac"] = _share(is_repetitive(sample.response) for sample in samples)
    if rewards:
        metrics["raw_reward"] = statistics.fmean(value for _, value in rewards)
    return metrics | _prefixed("zero_std/", zero_std_counts(rewards))


def rollout_metrics(
    samples: Sequence[Sample],
    tracking: TrackingConfig,
    *,
    reward_key: str | None = None,
    judged: bool = True,
) -> dict[str, float]:
    """``sample_metrics``, and what --log-passrate and flags like it add.

    ``judged``: whether anybody scored the samples; otherwise nothing is said of rewards.
    """
    found = sample_metrics(samples, reward_key=reward_key)
    if not judged:
        found = {name: value for name, value in found.items() if "reward" not in name}
    if tracking.log_passrate:
        found |= pass_rates(samples, reward_key=reward_key)
    if tracking.log_correct_samples:
        found |= correct_lengths(samples, reward_key=reward_key)
    if tracking.log_reward_category is not None:
        found |= category_metrics(samples, tracking.log_reward_category)
    return found


def zero_std_counts(scored: Sequence[tuple[Sample, float]]) -> dict[str, float]:
    """``count_{reward}``: groups of two or more whose rewards are all that one."""
    groups: dict[int | None, list[float]] = {}
    for sample, value in scored:
        groups.setdefault(sample.group_index, []).append(value)
    constant = [v[0] for v in groups.values() if len(v) > 1 and max(v) == min(v)]
    return {
        f"count_{value}": float(n)
        for value, n in Counter(round(v, 1) + 0.0 for v in constant).items()
    }


def category_metrics(samples: Sequence[Sample], category: str) -> dict[str, float]:
    """``error_cat/{value}``: share of samples by that entry of their dictionary rewards."""
    found = [
        str(sample.reward[category])
        for sample in samples
        if isinstance(sample.reward, dict) and category in sample.reward
    ]
    return {f"error_cat/{value}": n / len(samples) for value, n in sorted(Counter(found).items())}


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that k of the samples, drawn without replacement, contain a correct one.

        1 - C(n - c, k) / C(n, k)

    Source: Codex, arXiv:2107.03374, eq. 1.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}, must be from 1 to the {num_samples} samples")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def pass_rates(samples: Sequence[Sample], *, reward_key: str | None = None) -> dict[str, float]:
    """``pass@{k}`` for the powers of two up to the smallest group; correct means reward 1.

    An execution is correct if all its segments are. A sample without a reward is not.
    """
    groups: dict[int | None, list[bool]] = {}
    for segments in _executions(samples):
        correct = all(reward_value(sample, reward_key) == 1 for sample in segments)
        groups.setdefault(segments[0].group_index, []).append(correct)
    smallest = min((len(group) for group in groups.values()), default=0)
    powers = [1 << exponent for exponent in range(smallest.bit_length())]
    return {
        f"pass@{k}": statistics.fmean(pass_at_k(len(g), sum(g), k) for g in groups.values())
        for k in powers
    }


def correct_lengths(
    samples: Sequence[Sample], *, reward_key: str | None = None
) -> dict[str, float]:
    """``correct_len/{mean,...}``: lengths of the responses with reward 1."""
    rewards = _scored(samples, reward_key)
    lengths = [float(s.effective_response_length) for s, value in rewards if value == 1]
    return _prefixed("correct_len/", summarize(lengths))


def throughput(samples: Sequence[Sample], seconds: float, *, num_gpus: int) -> dict[str, float]:
    """Speed of generation; ``longest`` is what bounds a synchronous iteration."""
    if not samples or seconds <= 0:
        return {}
    lengths = [sample.response_length for sample in samples]
    effective = [sample.effective_response_length for sample in samples]
    return {
        "tokens_per_gpu_per_sec": sum(lengths) / seconds / num_gpus,
        "effective_tokens_per_gpu_per_sec": sum(effective) / seconds / num_gpus,
        "longest_sample_tokens_per_sec": max(lengths) / seconds,
        "longest_effective_sample_tokens_per_sec": max(effective) / seconds,
    }


def is_repetitive(text: str) -> bool:
    """Whether the last 10,000 characters compress more than tenfold."""
    tail = text[-_REPETITION_WINDOW:].encode(errors="surrogatepass")
    return len(tail) > _REPETITION_RATIO * len(zlib.compress(tail))


def merge(parts: Iterable[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """One mapping of several, each under its prefix."""
    return {prefix + name: value for prefix, part in parts for name, value in part.items()}


def _scored(samples: Sequence[Sample], reward_key: str | None) -> list[tuple[Sample, float]]:
    pairs = [(sample, reward_value(sample, reward_key)) for sample in samples]
    return [(sample, value) for sample, value in pairs if value is not None]


def _of_executions(scored: Sequence[tuple[Sample, float]]) -> list[tuple[Sample, float]]:
    """The first sample of every execution, with the mean reward of all."""
    value_of = {id(sample): value for sample, value in scored}
    return [
        (segments[0], statistics.fmean(value_of[id(sample)] for sample in segments))
        for segments in _executions([sample for sample, _ in scored])
    ]


def _executions(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples that share a group and a ``rollout_id`` together; without one each for itself."""
    found: dict[object, list[Sample]] = {}
    for sample in samples:
        alone = sample.rollout_id is None
        key = id(sample) if alone else (sample.group_index, sample.rollout_id)
        found.setdefault(key, []).append(sample)
    return [*found.values()]


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return merge([(prefix, values)])


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / len(found)
