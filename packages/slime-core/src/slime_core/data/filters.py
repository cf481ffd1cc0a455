"""Which finished groups are worth training on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.scores import reward_value
from slime_core.types import Sample

_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class DynamicFilterOutput:
    """Verdict on one group."""

    keep: bool
    reason: str | None = None
    """Why it is dropped; counted as rollout/dynamic_filter/drop_<reason>."""
    keep_when_insufficient: bool = False
    """Take it after all if dropping it would cost another round of oversampling."""


def check_reward_nonzero_std(
    args: Any, samples: Sequence[Sample | list[Sample]], **_kwargs: Any
) -> DynamicFilterOutput:
    """Keep groups whose rewards differ: equal ones have no advantage.

    For --dynamic-sampling-filter-path.
    Source: DAPO, arXiv:2503.14476, section 3.2.
    """
    rewards = _rewards(samples, getattr(args, "reward_key", None))
    if not rewards:
        return DynamicFilterOutput(keep=False, reason="no_reward")
    if max(rewards) - min(rewards) > _EPS:
        return DynamicFilterOutput(keep=True)
    return DynamicFilterOutput(keep=False, reason=f"zero_std_{round(rewards[0], 1)}")


def check_reward_nonzero_std_with_fallback(
    args: Any, samples: Sequence[Sample | list[Sample]], **_kwargs: Any
) -> DynamicFilterOutput:
    """The same, but a dropped group may fill a batch that would otherwise be short."""
    verdict = check_reward_nonzero_std(args, samples)
    return DynamicFilterOutput(verdict.keep, verdict.reason, keep_when_insufficient=True)


def _rewards(samples: Sequence[Sample | list[Sample]], reward_key: str | None) -> list[float]:
    flat = [s for item in samples for s in (item if isinstance(item, list) else [item])]
    values = [reward_value(sample, reward_key) for sample in flat]
    return [value for value in values if value is not None]
