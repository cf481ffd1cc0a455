"""Correct for the engines and the trainer computing slightly different probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImportanceWeights:
    """Constant weights per token, and what to report about them."""

    weights: Float[Tensor, " tokens"]
    metrics: Mapping[str, Tensor]


def truncated(
    train_log_probs: Float[Tensor, " tokens"],
    rollout_log_probs: Float[Tensor, " tokens"],
    *,
    low: float,
    high: float,
) -> ImportanceWeights:
    """Ratio of the trainer's to the engines' probability, kept within bounds.

        w_t = clamp(exp(l_train - l_rollout), low, high)

    Source: Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training,
    2025 (truncated importance sampling).
    """
    ratio = torch.exp(train_log_probs - rollout_log_probs).detach()
    weights = ratio.clamp(low, high)
    return ImportanceWeights(
        weights,
        {
            "tis": ratio,
            "tis_clipfrac": (weights != ratio).to(ratio.dtype),
            "tis_abs": (ratio - 1).abs(),
        },
    )
