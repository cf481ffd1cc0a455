"""Sums whose denominators are known before any microbatch runs.

Every loss and metric is a sum over the tokens a rank holds. Adding them over microbatches and
ranks and dividing once by the step's divisor gives the same number however the step was cut:

    mean over rollouts    sum_i sum_t x_it m_it / D_i,  D_i = trained tokens of i's whole rollout;
                          divided by the number of rollouts in the step
    mean over tokens      sum_i sum_t x_it m_it,  divided by the number of trained tokens
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.batch import LossInputs


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss returns for the tokens of one microbatch on one rank."""

    loss: Float[Tensor, ""]
    """Carries gradient; to be added over microbatches and ranks."""
    metrics: Mapping[str, Tensor]
    """Detached scalars, weighted like the loss."""


def denominators(
    rollout_token_counts: Float[Tensor, " samples"], *, calculate_per_token_loss: bool
) -> Float[Tensor, " samples"]:
    """What the tokens of each sample are divided by; 1 for a rollout without trained tokens."""
    if calculate_per_token_loss:
        return torch.ones_like(rollout_token_counts)
    return rollout_token_counts.clamp(min=1)


def step_divisor(num_rollouts: int, num_tokens: float, *, calculate_per_token_loss: bool) -> float:
    """What the sums of a whole step are divided by."""
    return max(num_tokens, 1.0) if calculate_per_token_loss else float(num_rollouts)


def masked(x: Float[Tensor, " tokens"], inputs: LossInputs) -> Float[Tensor, " tokens"]:
    """``x`` where tokens are trained on, 0 elsewhere, whatever stands there."""
    return torch.where(inputs.mask > 0, x, torch.zeros_like(x))


def weighted_sum(x: Float[Tensor, " tokens"], inputs: LossInputs) -> Float[Tensor, ""]:
    """Sum of x * mask / denominator."""
    return (masked(x, inputs) * inputs.mask / inputs.denominators).sum()
