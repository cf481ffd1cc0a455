"""Supervised fine-tuning."""

from slime_core.batch import LossInputs
from slime_core.losses.aggregate import LossOutput, weighted_sum


def sft_loss(inputs: LossInputs) -> LossOutput:
    """Negative log-likelihood of the trained tokens, summed over this rank's share.

    L = -log p
    """
    loss = weighted_sum(-inputs.log_probs, inputs.tokens)
    return LossOutput(loss, {"loss": loss.detach()})
