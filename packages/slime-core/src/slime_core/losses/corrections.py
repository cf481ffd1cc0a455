"""Importance weights and rejection, for tokens that another policy drew.

With the log-ratio d_t = log p_train - log p_behaviour of every trained token, a ratio is taken at
one of three levels and given to every token of its response:

    token       rho_t = exp(d_t)
    sequence    rho   = exp(sum_t d_t)
    geometric   rho   = exp(mean_t d_t)

Exponents are kept within +-20. Weights and masks carry no gradient. A mask leaves tokens out of
the loss but not out of its denominator, so that it does not change what other tokens weigh.
Source: token level, truncated: Yao et al., Your Efficient RL Framework Secretly Brings You
Off-Policy RL Training, 2025; sequence and geometric levels, masks and veto: Liu et al., When Speed
Kills Stability: Demystifying RL Collapse from the Training-Inference Mismatch, 2025; token masks:
IcePop, Ling Team, arXiv:2510.18855; proximal against behaviour policy: Hilton et al.,
arXiv:2110.00641, and AReaL, arXiv:2505.24298.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.batch import LocalTokens
from slime_core.config.off_policy import Level, Mode, OffPolicyConfig
from slime_core.interfaces import Reduce
from slime_core.losses.aggregate import masked
from slime_core.losses.ratio import ratio_of
from slime_core.losses.sequence import sample_mean, sample_sums

Vector = Float[Tensor, " tokens"]


@dataclass(frozen=True, slots=True)
class Correction:
    """What the loss of each token is multiplied by; no gradient."""

    weights: Vector
    keep: Vector
    """0 where a token is left out, else 1."""
    metrics: Mapping[str, Tensor]
    """Per token."""


@torch.no_grad()
def correct(
    train: Vector,
    behaviour: Vector,
    tokens: LocalTokens,
    config: OffPolicyConfig,
    context: Reduce,
    *,
    mean_weight: float = 1.0,
) -> Correction:
    """Weights and masks of the tokens a rank holds; 1 and 1 where nothing is asked for.

    ``context`` adds over the ranks that share a sample's tokens. ``mean_weight`` is what
    --tis-batch-normalize divides by: the mean over the whole step (see ``weight_sums``), so that a
    weight does not depend on what else is in its microbatch.
    """
    drift = masked(train - behaviour, tokens)
    weights = keep = torch.ones_like(drift)
    metrics: dict[str, Tensor] = {}
    if weighs(config):
        bounded = _weights(drift, tokens, config, context)
        if applies(config):
            weights, keep = bounded.values / mean_weight, bounded.inside
        metrics |= {
            "tis": bounded.ratio,
            "tis_abs": (bounded.ratio - 1).abs(),
            "tis_clipfrac": bounded.clipped,
        }
    if config.use_rs:
        kept = _accepted(drift, tokens, config, context)
        metrics["rs_mask_fraction"] = 1 - kept
        keep = keep * kept
        if config.rs_veto_threshold is not None:
            clean = without_veto(drift, tokens, config.rs_veto_threshold, context)
            metrics["rs_veto_fraction"] = 1 - clean
            keep = keep * clean
    return Correction(weights, keep, metrics)


def applies(config: OffPolicyConfig) -> bool:
    """Whether importance weights change the loss."""
    return config.use_tis or config.use_decoupled_ppo


def weighs(config: OffPolicyConfig) -> bool:
    """Whether there are importance weights, applied or only reported."""
    return applies(config) or config.get_mismatch_metrics


@torch.no_grad()
def weight_sums(
    train: Vector, behaviour: Vector, tokens: LocalTokens, config: OffPolicyConfig, context: Reduce
) -> Float[Tensor, " two"]:
    """(sum of the bounded weights, how many) over the trained tokens here, or the sequences.

    Added over every rank with samples of its own, their quotient is the ``mean_weight`` of
    ``correct``. Weights that the bounds leave out take no part. At the sequence level every rank
    of ``context`` counts the same sequences.
    """
    bounded = _weights(masked(train - behaviour, tokens), tokens, config, context)
    counted = (tokens.mask > 0) * bounded.inside
    if config.tis_level == "sequence":
        length = sample_sums(torch.ones_like(counted), tokens, context)[tokens.sample]
        counted = counted / length.clamp(min=1)
        zeros = counted.new_zeros(tokens.num_samples)
        total = zeros.index_add(0, tokens.sample, bounded.values * counted)
        count = zeros.index_add(0, tokens.sample, counted)
        return torch.stack([context.sum(total).sum(), context.sum(count).sum()])
    return torch.stack([(bounded.values * counted).sum(), counted.sum()])


def level_ratio(drift: Vector, tokens: LocalTokens, level: Level, context: Reduce) -> Vector:
    """Exp of the log-ratio at ``level``, for every token; ``drift`` is 0 where not trained on."""
    match level:
        case "token":
            exponent = drift
        case "sequence":
            exponent = sample_sums(drift, tokens, context)[tokens.sample]
        case "geometric":
            exponent = sample_mean(drift, tokens, context)[tokens.sample]
    return ratio_of(exponent)


@dataclass(frozen=True, slots=True)
class Bounded:
    """A ratio and what is left of it within bounds."""

    ratio: Vector
    values: Vector
    inside: Vector
    """0 where the mode leaves a token out."""
    clipped: Vector
    """1 where the bounds changed something."""


def bound(ratio: Vector, mode: Mode, *, low: float, high: float) -> Bounded:
    """Keep a ratio within bounds.

    truncate   min(rho, high)
    clip       min(max(rho, low), high)
    mask       rho, and the token is left out beyond the bounds
    """
    ones = torch.ones_like(ratio)
    match mode:
        case "truncate":
            values = ratio.clamp(max=high)
            return Bounded(ratio, values, ones, (values != ratio).to(ratio.dtype))
        case "clip":
            values = ratio.clamp(low, high)
            return Bounded(ratio, values, ones, (values != ratio).to(ratio.dtype))
        case "mask":
            inside = ((ratio >= low) & (ratio <= high)).to(ratio.dtype)
            return Bounded(ratio, ratio * inside, inside, 1 - inside)


def without_veto(drift: Vector, tokens: LocalTokens, threshold: float, context: Reduce) -> Vector:
    """0 for every token of a response any of whose trained tokens has a ratio below ``threshold``.

    Such a token is one the trainer's policy would hardly ever write: what follows it is no sample
    of that policy.
    """
    catastrophic = (drift < math.log(threshold)).to(drift.dtype)
    found = sample_sums(catastrophic, tokens, context)
    return (found == 0).to(drift.dtype)[tokens.sample]


def _weights(
    drift: Vector, tokens: LocalTokens, config: OffPolicyConfig, context: Reduce
) -> Bounded:
    ratio = level_ratio(drift, tokens, config.tis_level, context)
    return bound(ratio, config.tis_mode, low=config.tis_clip_low, high=config.tis_clip)


def _accepted(
    drift: Vector, tokens: LocalTokens, config: OffPolicyConfig, context: Reduce
) -> Vector:
    low = config.tis_clip_low if config.rs_lower_bound is None else config.rs_lower_bound
    high = config.tis_clip if config.rs_upper_bound is None else config.rs_upper_bound
    ratio = level_ratio(drift, tokens, config.rs_level, context)
    return bound(ratio, "mask", low=low, high=high).inside
