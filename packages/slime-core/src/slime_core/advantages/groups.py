"""Rewards relative to the other answers to the same prompt.

All functions take the rewards of any number of prompts in any order, and look at ids, never at
positions. Segments cut from one execution (equal ``rollout_ids`` within a group) count once in
every statistic, with the mean of their rewards; each segment is then compared on its own. What is
not ``valid`` takes no part and gets 0. Statistics are taken in float64 of the rewards above the
lowest of their group, so that equal rewards differ by exactly 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from slime_core.errors import SampleError

_EPS = 1e-6
_NO_CONTRAST = 1e-9
"""A group deviates by rounding only when its deviation is below this share of its range."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which samples are compared with which; row i of every field is sample i."""

    group_ids: Int[Tensor, " samples"]
    """The prompt each sample answers."""
    rollout_ids: Int[Tensor, " samples"]
    """The execution each sample was cut from."""
    valid: Bool[Tensor, " samples"]
    """False for samples without a reward."""


def group_relative(
    rewards: Float[Tensor, " samples"], grouping: Grouping, *, normalize_std: bool = True
) -> Float[Tensor, " samples"]:
    """Rewards centred within their group, and in units of its spread unless told otherwise.

        A_i = (r_i - mean(r)) / (std(r) + 1e-6),   std with Bessel's n / (n - 1)

    A group of one execution, or of equal rewards, has nothing to compare and gets 0.
    Source: DeepSeekMath, arXiv:2402.03300, eq. 3; without std: Dr.GRPO, arXiv:2503.20783.
    """
    found = _statistics(rewards, grouping)
    spread = found.executions - found.mean[found.owner]
    squares = _add(found.owner, spread * spread * found.present, found.count.numel())
    std = torch.sqrt(squares / (found.count - 1).clamp(min=1))
    contrast = std > _NO_CONTRAST * found.range
    scale = torch.where(contrast, std + _EPS, 1.0) if normalize_std else torch.ones_like(std)
    centred = (found.above_lowest - found.mean[found.group]) / scale[found.group]
    return _where(grouping.valid & contrast[found.group], centred, rewards)


def leave_one_out(
    rewards: Float[Tensor, " samples"], grouping: Grouping
) -> Float[Tensor, " samples"]:
    """Rewards less the mean of the group's other executions.

        A_i = r_i - 1 / (n - 1) sum_{j != i} r_j

    A group of one execution gets 0.
    Source: RLOO, arXiv:2402.14740.
    """
    found = _statistics(rewards, grouping)
    others = found.mean * found.count
    others = others[found.group] - found.executions[found.execution]
    baseline = others / (found.count - 1).clamp(min=1)[found.group]
    several = found.count[found.group] > 1
    return _where(grouping.valid & several, found.above_lowest - baseline, rewards)


def against_baseline(
    rewards: Float[Tensor, " samples"], baselines: Float[Tensor, " samples"], grouping: Grouping
) -> Float[Tensor, " samples"]:
    """Rewards less the reward of the greedy answer to the same prompt; groups of one are fine.

        A_i = r_i - b

    Raises:
        SampleError: naming a group whose baseline is not a finite number.
    Source: ReMax, arXiv:2310.10505, algorithm 1.
    """
    missing = grouping.valid & ~baselines.isfinite()
    if missing.any():
        raise SampleError(
            f"group {_first(grouping, missing)} has no `baseline`, but --advantage-estimator remax "
            "compares its rewards with that of the greedy answer to the same prompt: have the "
            "rollout set SampleGroup.baseline, or choose rloo, which needs none"
        )
    _refuse_infinite(rewards, grouping)
    return _where(grouping.valid, rewards.double() - baselines.double(), rewards)


def maximum_likelihood(
    rewards: Float[Tensor, " samples"], grouping: Grouping
) -> Float[Tensor, " samples"]:
    """Rewards centred within their group, in units of its mean: hard prompts weigh more.

        A_i = (r_i - mean(r)) / mean(r)

    With rewards of 0 and 1 it estimates the gradient of log pass@1 up to order n. A group of mean
    0 gets 0, and so does a group of one execution.

    Raises:
        SampleError: naming a group with a negative reward, for which the mean is no scale.
    Source: MaxRL, arXiv:2602.02710, algorithm 1.
    """
    negative = grouping.valid & (rewards < 0)
    if negative.any():
        raise SampleError(
            f"group {_first(grouping, negative)} has the reward {float(rewards[negative][0])}, but "
            "--advantage-estimator maxrl divides by the mean reward and needs rewards that are 0 "
            "or more (such as 0 and 1): change the reward function, leave out length penalties, or "
            "choose another estimator"
        )
    found = _statistics(rewards, grouping)
    mean = found.lowest + found.mean
    useful = (found.count > 1) & (mean > 0)
    scale = torch.where(useful, mean, 1.0)[found.group]
    centred = (found.above_lowest - found.mean[found.group]) / scale
    return _where(grouping.valid & useful[found.group], centred, rewards)


def decoupled(
    rewards: Float[Tensor, "keys samples"],
    weights: Sequence[float],
    grouping: Grouping,
    *,
    normalize_std: bool = True,
) -> Float[Tensor, " samples"]:
    """Several rewards, each relative to its group on its own, then added.

        A_i = sum_k w_k (r_ki - mean(r_k)) / (std(r_k) + 1e-6)

    Normalising the sum instead would give different mixtures of rewards the same advantage. The
    paper's last step, normalisation over the batch, is ``whiten`` over trained tokens.
    Source: GDPO, arXiv:2601.05242.
    """
    parts = [
        weight * group_relative(row, grouping, normalize_std=normalize_std)
        for weight, row in zip(weights, rewards, strict=True)
    ]
    return torch.stack(parts).sum(0)


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Rewards by sample, by execution and by group; all above the lowest of the group."""

    above_lowest: Tensor
    """[samples]"""
    execution: Tensor
    """[samples] its execution"""
    group: Tensor
    """[samples] its group"""
    executions: Tensor
    """[executions] mean reward of its valid segments"""
    owner: Tensor
    """[executions] its group"""
    present: Tensor
    """[executions] 1 if any segment is valid"""
    count: Tensor
    """[groups] executions that are present"""
    mean: Tensor
    """[groups] over executions"""
    lowest: Tensor
    """[groups] what was subtracted; infinite where nothing is valid"""
    range: Tensor
    """[groups] highest less lowest reward of a sample"""


def _statistics(rewards: Tensor, grouping: Grouping) -> _Statistics:
    valid = grouping.valid
    _refuse_infinite(rewards, grouping)
    ids, group = torch.unique(grouping.group_ids, return_inverse=True)
    keys = torch.stack([group, grouping.rollout_ids.to(group)])
    unique, execution = torch.unique(keys, dim=1, return_inverse=True)
    owner, num_groups = unique[0], ids.numel()
    wide = rewards.double()
    nothing = wide.new_full((num_groups,), torch.inf)
    lowest = nothing.scatter_reduce(0, group, wide.where(valid, torch.inf), "amin")
    above = torch.where(valid, wide - lowest[group], 0.0)
    segments = _add(execution, valid.double(), owner.numel())
    executions = _add(execution, above, owner.numel()) / segments.clamp(min=1)
    present = (segments > 0).double()
    count = _add(owner, present, num_groups)
    return _Statistics(
        above_lowest=above,
        execution=execution,
        group=group,
        executions=executions,
        owner=owner,
        present=present,
        count=count,
        mean=_add(owner, executions, num_groups) / count.clamp(min=1),
        lowest=lowest,
        range=torch.zeros_like(nothing).scatter_reduce(0, group, above, "amax"),
    )


def _refuse_infinite(rewards: Tensor, grouping: Grouping) -> None:
    odd = grouping.valid & ~rewards.isfinite()
    if odd.any():
        raise SampleError(
            f"group {_first(grouping, odd)} has the reward {float(rewards[odd][0])}, which is not "
            "a finite number"
        )


def _add(index: Tensor, x: Tensor, size: int) -> Tensor:
    return x.new_zeros(size).index_add(0, index, x)


def _where(condition: Tensor, x: Tensor, like: Tensor) -> Tensor:
    return torch.where(condition, x, 0.0).to(like.dtype)


def _first(grouping: Grouping, condition: Tensor) -> int:
    return int(grouping.group_ids[condition][0])
