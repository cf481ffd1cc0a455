"""Supervised fine-tuning."""

from slime_core.batch import LossInputs
from slime_core.losses.aggregate import LossOutput, masked, weighted_sum


def sft_loss(inputs: LossInputs) -> LossOutput:
    """Negative log-likelihood of the trained tokens, summed over this rank's share.

    L = -log p
    """
    loss = weighted_sum(-masked(inputs.log_probs, inputs.tokens), inputs.tokens)
    return LossOutput(loss, {"loss": loss.detach()})
