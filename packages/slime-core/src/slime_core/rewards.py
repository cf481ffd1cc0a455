"""Turn rewards that were given into rewards that are learnt from."""

import math
import statistics
from collections.abc import Sequence

from slime_core.config.algorithm import AdvantageConfig
from slime_core.errors import SampleError
from slime_core.types import Sample, SampleGroup, Status

_CENTRED = frozenset({"grpo", "gspo", "cispo", "reinforce_plus_plus_baseline"})
_SCALED = frozenset({"grpo", "gspo", "cispo"})
_EPS = 1e-6


def reward_value(sample: Sample, reward_key: str | None) -> float | None:
    """The number behind ``sample.reward``; None where a failed or aborted sample has none.

    Raises:
        SampleError: a finished sample without a usable reward.
    """
    reward = sample.reward
    if isinstance(reward, dict):
        if reward_key is None or reward_key not in reward:
            raise SampleError(
                f"sample {sample.index}: `reward` has the keys {sorted(reward)}; "
                f"name one of them with --reward-key (got {reward_key!r})"
            )
        reward = reward[reward_key]
    if reward is None:
        if sample.status in (Status.FAILED, Status.ABORTED):
            return None
        raise SampleError(f"sample {sample.index} is {sample.status} but has no `reward`")
    value = float(reward)
    if not math.isfinite(value):
        raise SampleError(f"sample {sample.index}: `reward` is {value}, not a finite number")
    return value


def normalize(
    groups: Sequence[SampleGroup], advantage: AdvantageConfig, *, reward_key: str | None = None
) -> list[float]:
    """Rewards of all samples in order, relative to the mean and spread of their group.

        r_i <- (r_i - mean) / (std + 1e-6)      grpo, gspo, cispo
        r_i <- r_i - mean                       reinforce_plus_plus_baseline, or without std
        r_i                                     reinforce_plus_plus, ppo

    Groups are what shares a ``group_index``, of any size. Segments of one execution count once in
    the statistics. A sample without a reward takes no part and gets 0, and so does a group whose
    rewards are all equal; the deviation is the unbiased one.
    Source: DeepSeekMath, arXiv:2402.03300, eq. 3; without std: Dr.GRPO, arXiv:2503.20783.
    """
    pairs = [(group.group_index, sample) for group in groups for sample in group.samples]
    values = [reward_value(sample, reward_key) for _, sample in pairs]
    if not advantage.normalize_rewards or advantage.advantage_estimator not in _CENTRED:
        return [0.0 if value is None else value for value in values]
    members: dict[int, list[int]] = {}
    for row, (group_index, _) in enumerate(pairs):
        members.setdefault(group_index, []).append(row)
    scaled = advantage.normalize_grpo_std and advantage.advantage_estimator in _SCALED
    result = [0.0] * len(pairs)
    for rows in members.values():
        scored = [row for row in rows if values[row] is not None]
        baseline = _executions([(pairs[row][1].rollout_id, values[row] or 0.0) for row in scored])
        if len(set(baseline)) > 1:
            mean = statistics.fmean(baseline)
            scale = statistics.stdev(baseline) + _EPS if scaled else 1.0
            for row in scored:
                result[row] = ((values[row] or 0.0) - mean) / scale
    return result


def _executions(scored: Sequence[tuple[int | None, float]]) -> list[float]:
    """One reward per execution: the mean over its segments."""
    rewards: dict[object, list[float]] = {}
    for position, (rollout_id, value) in enumerate(scored):
        key = ("alone", position) if rollout_id is None else rollout_id
        rewards.setdefault(key, []).append(value)
    return [statistics.fmean(values) for values in rewards.values()]
