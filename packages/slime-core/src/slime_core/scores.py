"""What a sample scored; without torch, because filters and metrics read it too."""

import math
from collections.abc import Mapping, Sequence

from slime_core.errors import SampleError
from slime_core.types import Sample, Status

REWARD_OUTCOME = "reward_outcome"
"""Key of the metadata of a response that could not be graded: why there is no reward."""
WHERE = "traceback"
"""Key of the metadata of a sample on which a user's function failed: what led there."""


def is_answer(label: object) -> bool:
    """Whether a response could equal a label: nothing, blanks, NaN and dictionaries it cannot."""
    if isinstance(label, float):
        return not math.isnan(label)
    if isinstance(label, str):
        return bool(label.strip())
    return label is not None and not isinstance(label, Mapping)


def is_broken(sample: Sample) -> bool:
    """Whether it failed or was aborted, so that nothing can be learnt, whatever it was given."""
    return sample.status in (Status.FAILED, Status.ABORTED)


def is_ungraded(samples: Sequence[Sample]) -> bool:
    """Whether nothing of a group is left to learn from because responses could not be graded."""
    failed = all(sample.status is Status.FAILED for sample in samples)
    return failed and any(REWARD_OUTCOME in sample.metadata for sample in samples)


def never_generated(samples: Sequence[Sample]) -> bool:
    """Whether all of them failed before there was anything to grade."""
    return all(s.status is Status.FAILED and REWARD_OUTCOME not in s.metadata for s in samples)


def reward_value(sample: Sample, reward_key: str | None) -> float | None:
    """The number behind ``sample.reward``; None where a failed or aborted sample has none.

    Raises:
        SampleError: a finished sample without a usable reward.
    """
    reward = sample.reward
    if isinstance(reward, dict):
        if reward_key is None or reward_key not in reward:
            if is_broken(sample):
                return None
            raise SampleError(
                f"sample {sample.index}: `reward` has the keys {sorted(reward)}; "
                f"name one of them with --reward-key (got {reward_key!r})"
            )
        reward = reward[reward_key]
    if reward is None:
        if is_broken(sample):
            return None
        raise SampleError(f"sample {sample.index} is {sample.status} but has no `reward`")
    return _number(sample, reward)


def reward_entry(sample: Sample, key: str) -> float | None:
    """``sample.reward[key]`` as a number; None where a failed or aborted sample has none.

    Raises:
        SampleError: a finished sample whose reward is no dictionary or lacks a usable entry.
    """
    reward = sample.reward
    entry = reward.get(key) if isinstance(reward, dict) else None
    if entry is not None:
        return _number(sample, entry)
    if is_broken(sample):
        return None
    found = f"the keys {sorted(reward)}" if isinstance(reward, dict) else f"the value {reward!r}"
    raise SampleError(
        f"sample {sample.index}: `reward` has {found}, but --gdpo-reward-keys asks for {key!r}: "
        "return a dictionary with a number under each of these keys from the reward function"
    )


def _number(sample: Sample, reward: object) -> float:
    try:
        value = float(reward)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise SampleError(f"sample {sample.index}: `reward` is {reward!r}, not a number") from None
    if not math.isfinite(value):
        raise SampleError(f"sample {sample.index}: `reward` is {value}, not a finite number")
    return value
