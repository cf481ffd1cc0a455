"""Discounted sums along a response, and estimates built on them."""

import torch
from jaxtyping import Float
from torch import Tensor

Vector = Float[Tensor, " tokens"]


def discounted(x: Vector, discount: float) -> Vector:
    """R_t = x_t + discount * R_{t+1}, backwards from R = 0 after the last token."""
    if discount == 1.0:
        return x.flip(0).cumsum(0).flip(0)
    result = x.clone()
    for t in range(x.numel() - 2, -1, -1):
        result[t] += discount * result[t + 1]
    return result


def terminal_reward(per_token: Vector, mask: Vector, reward: Float[Tensor, ""]) -> Vector:
    """``per_token`` plus ``reward`` at the last trained token; unchanged if there is none."""
    trained = torch.nonzero(mask)
    result = per_token.clone()
    if trained.numel():
        result[trained[-1, 0]] += reward
    return result


def reinforce_plus_plus(
    kl: Vector, mask: Vector, reward: Float[Tensor, ""], gamma: float
) -> Vector:
    """Discounted return of the penalised reward; ``kl`` already carries its coefficient.

        rho_t = -kl_t m_t + [t is the last trained token] r,   R_t = rho_t + gamma R_{t+1}

    A response without trained tokens has return 0.
    Source: REINFORCE++, arXiv:2501.03262, eq. 6.
    """
    return discounted(terminal_reward(-kl * mask, mask, reward), gamma)


def generalized(
    rewards: Vector, values: Vector, *, gamma: float, gae_lambda: float
) -> tuple[Vector, Vector]:
    """Advantages and returns of one response that ends its episode.

        delta_t = rho_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lambda A_{t+1},   R = A + V

    Source: generalized advantage estimation, arXiv:1506.02438, eq. 16.
    """
    ahead = torch.cat([values[1:], values.new_zeros(min(1, values.numel()))])
    advantages = discounted(rewards + gamma * ahead - values, gamma * gae_lambda)
    return advantages, advantages + values
