"""Estimates of the KL divergence from sampled tokens."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from slime_core.losses.ratio import ratio_of

KlType = Literal["k1", "k2", "k3", "low_var_kl"]


def approx_kl(
    log_probs: Float[Tensor, " tokens"],
    base_log_probs: Float[Tensor, " tokens"],
    kind: KlType,
    *,
    ratio: Float[Tensor, " tokens"] | None = None,
) -> Float[Tensor, " tokens"]:
    """KL(policy || base) per token, from tokens the policy sampled; d = log p - log base.

        k1           d                    unbiased, noisy, its gradient has mean zero
        k2           d**2 / 2             biased, the gradient of the KL
        k3           exp(-d) - 1 + d      unbiased and never negative, the gradient of KL(base || p)
        low_var_kl   k3, clamped to [-10, 10]

    ``ratio`` p / p_old, when given, weighs each estimate; it is not detached. With it k1 and k3
    have the gradient of KL(p || base) for tokens sampled from p_old, k2 that of its own mean.
    Source: J. Schulman, Approximating KL Divergence, 2020; the weighting: DeepSeek-V3.2,
    arXiv:2512.02556, section 3.1.
    """
    kinds = get_args(KlType)
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, not {kind!r}")
    d = log_probs - base_log_probs
    match kind:
        case "k1":
            kl = d
        case "k2":
            kl = d * d / 2
        case "k3" | "low_var_kl":
            kl = ratio_of(-d) - 1 + d
    if ratio is not None:
        kl = ratio * kl
    return kl.clamp(-10, 10) if kind == "low_var_kl" else kl
