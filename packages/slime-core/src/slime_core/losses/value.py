"""What a critic learns: the returns, in small steps."""

import torch

from slime_core.batch import ValueInputs
from slime_core.config.algorithm import CriticConfig
from slime_core.losses.aggregate import LossOutput, masked, weighted_sum
from slime_core.losses.report import token_sums


def value_loss(inputs: ValueInputs, config: CriticConfig) -> LossOutput:
    """Squared error of the values, or of the values clipped around the old ones if that is larger.

        L = max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)

    Without the factor 1/2, as upstream. Summed over this rank's tokens.
    Source: PPO as implemented by OpenAI baselines; for the trust region it stands for, Schulman et
    al., arXiv:1506.02438, section 5.
    """
    tokens = inputs.tokens
    values, old, returns = masked(inputs.values, tokens), inputs.old_values, inputs.returns
    bounded = old + (values - old).clamp(-config.value_clip, config.value_clip)
    plain, clipped = (values - returns).square(), (bounded - returns).square()
    loss = weighted_sum(torch.maximum(plain, clipped), tokens)
    vectors = {
        "value_clipfrac": (clipped > plain).to(values.dtype),
        "values": values,
        "returns": returns,
    }
    terms = {"loss": loss.detach(), "value_loss": loss.detach()}
    return LossOutput(loss, {**terms, **token_sums(vectors, tokens)})
