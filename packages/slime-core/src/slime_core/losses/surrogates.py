"""Surrogate objectives per token, from a ratio of probabilities and an advantage."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.config.algorithm import PolicyLossConfig

Vector = Float[Tensor, " tokens"]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Loss per token, and which tokens were clipped."""

    loss: Vector
    clipped: Vector


def clipped(
    ratio: Vector, advantages: Vector, *, low: float, high: float, dual: float | None = None
) -> Surrogate:
    """Pessimistic of the plain and the clipped objective.

        L = max(-r A, -clip(r, 1 - low, 1 + high) A),  and  L = min(L, -dual A)  where A < 0

    Source: PPO, arXiv:1707.06347, eq. 7; two bounds: DAPO, arXiv:2503.14476, eq. 10; dual clip:
    arXiv:1912.09729, eq. 8. With the ratio of a whole sequence: GSPO, arXiv:2507.18071, eq. 5.
    """
    plain = -ratio * advantages
    bounded = -ratio.clamp(1 - low, 1 + high) * advantages
    loss = torch.maximum(plain, bounded)
    if dual is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual * advantages), loss)
    return Surrogate(loss, (bounded > plain).to(ratio.dtype))


def cispo(
    ratio: Vector, log_probs: Vector, advantages: Vector, *, low: float, high: float
) -> Surrogate:
    """REINFORCE weighted by a clipped ratio that carries no gradient.

        L = -sg(clip(r, 1 - low, 1 + high)) A log p

    Source: MiniMax-M1, arXiv:2506.13585, eq. 4.
    """
    weight = ratio.clamp(1 - low, 1 + high).detach()
    return Surrogate(-weight * advantages * log_probs, (weight != ratio).to(ratio.dtype))


def sapo(ratio: Vector, advantages: Vector, *, positive: float, negative: float) -> Surrogate:
    """A gate that closes smoothly as the ratio leaves 1, instead of a clip.

        L = -(4 / tau) sigmoid(tau (r - 1)) A,  tau by the sign of A

    At r = 1 its gradient is that of -r A. Nothing is ever clipped.
    Source: SAPO, arXiv:2511.20347, eq. 5 and 6.
    """
    tau = torch.where(
        advantages > 0, torch.full_like(ratio, positive), torch.full_like(ratio, negative)
    )
    loss = -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages
    return Surrogate(loss, torch.zeros_like(ratio))


def surrogate(
    ratio: Vector, log_probs: Vector, advantages: Vector, config: PolicyLossConfig
) -> Surrogate:
    """The objective of --policy-surrogate. gspo differs from clip in the ratio it is given."""
    low, high = config.eps_clip, config.eps_clip_high
    match config.policy_surrogate:
        case "clip" | "gspo":
            return clipped(ratio, advantages, low=low, high=high, dual=config.eps_clip_c)
        case "cispo":
            return cispo(ratio, log_probs, advantages, low=low, high=high)
        case "sapo":
            return sapo(
                ratio,
                advantages,
                positive=config.sapo_temperature_positive,
                negative=config.sapo_temperature_negative,
            )
