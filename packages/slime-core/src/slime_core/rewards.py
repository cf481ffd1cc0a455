"""Turn rewards that were given into rewards that are learnt from."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from slime_core.advantages import groups as relative
from slime_core.advantages.groups import Grouping
from slime_core.config.algorithm import AdvantageConfig
from slime_core.errors import ConfigError
from slime_core.scores import is_broken, reward_entry, reward_value
from slime_core.types import Sample, SampleGroup


def normalize(
    groups: Sequence[SampleGroup],
    advantage: AdvantageConfig,
    *,
    reward_key: str | None = None,
    penalties: Sequence[float] | None = None,
) -> list[float]:
    """Rewards of all samples in order, relative to what the estimator compares them with.

        grpo, gspo, cispo               (r - mean) / (std + 1e-6), or without std
        reinforce_plus_plus_baseline    r - mean
        rloo                            r - mean of the others
        remax                           r - SampleGroup.baseline
        maxrl                           (r - mean) / mean
        gdpo                            sum_k w_k (r_k - mean_k) / (std_k + 1e-6)
        reinforce_plus_plus, ppo        r

    Groups are what shares a ``group_index``, of any size. Segments of one execution count once in
    the statistics. A failed or aborted sample takes no part and gets 0. ``penalties``, one per
    sample, are added to the reward first; with gdpo to that of ``reward_key``.
    Source: see ``slime_core.advantages.groups``.
    """
    samples = [sample for group in groups for sample in group.samples]
    grouping = grouping_of(groups)
    keys = _keys(advantage, reward_key)
    columns = torch.tensor([_column(samples, advantage, key) for key in keys], dtype=torch.float64)
    if penalties is not None:
        columns[_penalised(keys, reward_key)] += torch.tensor(penalties, dtype=torch.float64)
    if not advantage.normalize_rewards:
        plain = torch.tensor(_weights(advantage), dtype=torch.float64) @ columns
        return torch.where(grouping.valid, plain, 0.0).tolist()
    return _relative(groups, grouping, columns, advantage).tolist()


def _relative(
    groups: Sequence[SampleGroup], grouping: Grouping, columns: Tensor, advantage: AdvantageConfig
) -> Tensor:
    """``columns`` [keys, samples] as the estimator compares them: [samples]."""
    rewards, std = columns[0], advantage.normalize_grpo_std
    match advantage.advantage_estimator:
        case "grpo" | "gspo" | "cispo":
            result = relative.group_relative(rewards, grouping, normalize_std=std)
        case "reinforce_plus_plus_baseline":
            result = relative.group_relative(rewards, grouping, normalize_std=False)
        case "rloo":
            result = relative.leave_one_out(rewards, grouping)
        case "remax":
            result = relative.against_baseline(rewards, _baselines(groups), grouping)
        case "maxrl":
            result = relative.maximum_likelihood(rewards, grouping)
        case "gdpo":
            weights = _weights(advantage)
            result = relative.decoupled(columns, weights, grouping, normalize_std=std)
        case "reinforce_plus_plus" | "ppo":
            result = torch.where(grouping.valid, rewards, 0.0)
    return result


def raw_rewards(
    samples: Sequence[Sample], advantage: AdvantageConfig, *, reward_key: str | None = None
) -> list[float]:
    """What the samples were given, as one number each; 0 where a broken one was given none.

    With gdpo and no ``reward_key`` it is the weighted sum of the rewards learnt from.
    """
    if reward_key is not None or advantage.advantage_estimator != "gdpo":
        return [reward_value(sample, reward_key) or 0.0 for sample in samples]
    columns = [_column(samples, advantage, key) for key in _keys(advantage, reward_key)]
    rows = zip(*columns, strict=True)
    return [sum(w * r for w, r in zip(_weights(advantage), row, strict=True)) for row in rows]


def grouping_of(groups: Sequence[SampleGroup]) -> Grouping:
    """Who is compared with whom, over the samples of ``groups`` in order."""
    pairs = [(group.group_index, sample) for group in groups for sample in group.samples]
    samples = [sample for _, sample in pairs]
    return Grouping(
        group_ids=torch.tensor([group_index for group_index, _ in pairs], dtype=torch.int64),
        rollout_ids=torch.tensor(rollout_ids(samples), dtype=torch.int64),
        valid=torch.tensor([not is_broken(sample) for sample in samples], dtype=torch.bool),
    )


def rollout_ids(samples: Sequence[Sample]) -> list[int]:
    """Ids as given; samples without one are executions of their own."""
    used = {sample.rollout_id for sample in samples}
    free = (i for i in itertools.count() if i not in used)
    return [next(free) if s.rollout_id is None else s.rollout_id for s in samples]


def _keys(advantage: AdvantageConfig, reward_key: str | None) -> tuple[str | None, ...]:
    """The rewards that are learnt from."""
    if advantage.advantage_estimator != "gdpo":
        return (reward_key,)
    if not advantage.gdpo_reward_keys:
        raise ConfigError("--advantage-estimator gdpo needs --gdpo-reward-keys KEY [KEY ...]")
    return advantage.gdpo_reward_keys


def _weights(advantage: AdvantageConfig) -> tuple[float, ...]:
    """What each of them counts."""
    if advantage.advantage_estimator != "gdpo":
        return (1.0,)
    return advantage.gdpo_reward_weights or (1.0,) * len(advantage.gdpo_reward_keys)


def _column(samples: Sequence[Sample], advantage: AdvantageConfig, key: str | None) -> list[float]:
    """One reward of every sample; 0 where a broken one has none."""
    if advantage.advantage_estimator == "gdpo" and key is not None:
        found = [reward_entry(sample, key) for sample in samples]
    else:
        found = [reward_value(sample, key) for sample in samples]
    return [0.0 if value is None else value for value in found]


def _penalised(keys: Sequence[str | None], reward_key: str | None) -> int:
    if reward_key not in keys:
        raise ConfigError(
            f"length penalties change the reward of --reward-key, which is {reward_key!r} and not "
            f"one of --gdpo-reward-keys {' '.join(map(str, keys))}: give one of these"
        )
    return keys.index(reward_key)


def _baselines(groups: Sequence[SampleGroup]) -> Tensor:
    """The baseline of each sample's group; NaN where there is none."""
    known = {group.group_index: group.baseline for group in groups if group.baseline is not None}
    values = [
        known.get(group.group_index, float("nan")) if group.baseline is None else group.baseline
        for group in groups
        for _ in group.samples
    ]
    return torch.tensor(values, dtype=torch.float64)
