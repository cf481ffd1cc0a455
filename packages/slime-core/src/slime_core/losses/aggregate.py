"""Sums whose denominators are known before any microbatch runs.

Every loss and metric is a sum over the tokens a rank holds. Adding them over microbatches and
ranks and dividing once by the step's divisor gives the same number however the step was cut:

    loss = (1 / divisor) * sum over samples i and tokens t of  x_it m_it / D_i

    token          D_i = 1                                    divisor = trained tokens
    sample         D_i = trained tokens of i                  divisor = samples
    rollout        D_i = trained tokens of i's whole rollout  divisor = rollouts
    constant       D_i = a constant length                    divisor = rollouts
    sequence-sum   D_i = 1                                    divisor = rollouts

A sample or rollout without trained tokens still counts in the divisor.
Source: token: DAPO, arXiv:2503.14476, eq. 8; sample: GRPO, arXiv:2402.03300, eq. 3; rollout: the
same with siblings cut from one execution as one answer; constant: Dr.GRPO, arXiv:2503.20783.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.batch import LocalTokens, TrainBatch
from slime_core.config.algorithm import Aggregation
from slime_core.schedule.plan import StepCounts


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss returns for the tokens of one microbatch on one rank."""

    loss: Float[Tensor, ""]
    """Carries gradient; to be added over microbatches and ranks."""
    metrics: Mapping[str, Tensor]
    """Detached scalars, weighted like the loss."""


def denominators(
    batch: TrainBatch, aggregation: Aggregation, *, constant: float = 1.0
) -> Float[Tensor, " samples"]:
    """What the tokens of each sample are divided by; 1 where nothing is trained on."""
    match aggregation:
        case "token" | "sequence-sum":
            return torch.ones_like(batch.rollout_token_counts)
        case "sample":
            counts = torch.stack([mask.sum() for mask in batch.loss_mask.split()])
            return counts.clamp(min=1)
        case "rollout":
            return batch.rollout_token_counts.clamp(min=1)
        case "constant":
            return torch.full_like(batch.rollout_token_counts, constant)


def step_divisor(counts: StepCounts, aggregation: Aggregation) -> float:
    """What the sums of a whole step are divided by."""
    match aggregation:
        case "token":
            return max(counts.num_tokens, 1.0)
        case "sample":
            return float(counts.num_samples)
        case "rollout" | "constant" | "sequence-sum":
            return float(counts.num_rollouts)


def masked(x: Float[Tensor, " tokens"], tokens: LocalTokens) -> Float[Tensor, " tokens"]:
    """``x`` where tokens are trained on, 0 elsewhere, whatever stands there."""
    return torch.where(tokens.mask > 0, x, torch.zeros_like(x))


def weighted_sum(x: Float[Tensor, " tokens"], tokens: LocalTokens) -> Float[Tensor, ""]:
    """Sum of x * mask / denominator."""
    return (masked(x, tokens) * tokens.mask / tokens.denominators).sum()
