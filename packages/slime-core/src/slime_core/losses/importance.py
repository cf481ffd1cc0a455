"""Correct for the engines and the trainer computing slightly different probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.batch import LossInputs
from slime_core.hooks import bind, load_hook


@runtime_checkable
class ImportanceFunction(Protocol):
    """--custom-tis-function-path: reweighs the policy loss of some tokens."""

    def __call__(
        self, pg_loss: Float[Tensor, " tokens"], inputs: LossInputs
    ) -> tuple[Float[Tensor, " tokens"], Mapping[str, Tensor]]:
        """The loss per token, and what to report per token."""
        ...


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


def custom_importance(spec: str, flat: Mapping[str, Any]) -> ImportanceFunction:
    """Adapt ``f(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, ...)``.

    It gets lists of one vector per sample of the microbatch, and returns the loss, masks and
    metrics. Its masks leave tokens out of the loss but not out of the denominator. Under context
    parallelism it sees the tokens of one rank.
    """
    call = bind(load_hook("custom_tis_function_path", spec), flat)

    def reweigh(pg_loss: Tensor, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert inputs.rollout_log_probs is not None, "checked by the caller"
        sample = inputs.tokens.sample
        lengths: list[int] = torch.bincount(sample, minlength=inputs.tokens.num_samples).tolist()
        weighted, masks, metrics = call(
            pg_loss=pg_loss,
            train_log_probs=list(inputs.old_log_probs.split(lengths)),
            rollout_log_probs=list(inputs.rollout_log_probs.split(lengths)),
            loss_masks=list(inputs.tokens.mask.split(lengths)),
            total_lengths=lengths,
            response_lengths=lengths,
        )
        kept = torch.cat(list(masks)).to(pg_loss.dtype)
        return weighted * kept, {name: x.reshape(pg_loss.shape) for name, x in metrics.items()}

    return reweigh
