"""Losses as a user would write them for --custom-loss-function-path."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from slime_megatron.iteration.custom_loss import log_probs_and_entropy
from torch import Tensor


def policy_gradient(
    args: Any, batch: Mapping[str, Any], logits: Tensor, sum_of_sample_mean: Callable[..., Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The unclipped policy objective with an entropy bonus of 0.01."""
    log_probs, entropies = (torch.cat(x) for x in log_probs_and_entropy(batch, logits))
    ratio = torch.exp(log_probs - torch.cat(batch["log_probs"]))
    entropy = sum_of_sample_mean(entropies)
    loss = sum_of_sample_mean(-ratio * torch.cat(batch["advantages"])) - 0.01 * entropy
    return loss, {"entropy": entropy}
