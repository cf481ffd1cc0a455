"""The policy objective: a surrogate, its corrections, entropy and KL terms."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.batch import LossInputs
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.interfaces import Reduce
from slime_core.losses.aggregate import LossOutput, masked, weighted_sum
from slime_core.losses.importance import ImportanceFunction, truncated
from slime_core.losses.kl import approx_kl
from slime_core.losses.sequence import off_policy_mask, sample_mean


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Loss per token, and which tokens were clipped."""

    loss: Float[Tensor, " tokens"]
    clipped: Float[Tensor, " tokens"]


def clipped_surrogate(
    ratio: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    config: PolicyLossConfig,
) -> Surrogate:
    """Pessimistic of the plain and the clipped objective.

        L = max(-r A, -clip(r, 1 - eps, 1 + eps_high) A),  and  L = min(L, -c A)  where A < 0

    Source: PPO, arXiv:1707.06347, eq. 7; eps_high: DAPO, arXiv:2503.14476, eq. 10; c: dual clip,
    arXiv:1912.09729, eq. 8.
    """
    plain = -ratio * advantages
    bounded = -ratio.clamp(1 - config.eps_clip, 1 + config.eps_clip_high) * advantages
    loss = torch.maximum(plain, bounded)
    if config.eps_clip_c is not None:
        dual = torch.minimum(loss, -config.eps_clip_c * advantages)
        loss = torch.where(advantages < 0, dual, loss)
    return Surrogate(loss, (bounded > plain).to(ratio.dtype).detach())


def cispo_surrogate(
    ratio: Float[Tensor, " tokens"],
    log_probs: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    config: PolicyLossConfig,
) -> Surrogate:
    """REINFORCE weighted by a clipped ratio that carries no gradient.

        L = -sg(clip(r, 1 - eps, 1 + eps_high)) A log p

    Source: MiniMax-M1, arXiv:2506.13585, eq. 4.
    """
    weight = ratio.clamp(1 - config.eps_clip, 1 + config.eps_clip_high).detach()
    return Surrogate(-weight * advantages * log_probs, (weight != ratio).to(ratio.dtype).detach())


def policy_loss(
    inputs: LossInputs,
    config: PolicyLossConfig,
    advantage: AdvantageConfig,
    off_policy: OffPolicyConfig,
    context: Reduce,
    *,
    importance: ImportanceFunction | None = None,
) -> LossOutput:
    """Policy loss - entropy_coef * entropy + kl_loss_coef * KL, summed over this rank's tokens.

    ``inputs.old_log_probs`` are the trainer's; the engines' take their place here when
    --use-rollout-logprobs is given. ``context`` adds over the ranks that share a sample's tokens.
    ``importance`` replaces truncated importance sampling, or only reports with
    --get-mismatch-metrics.
    """
    old = _old_log_probs(inputs, off_policy)
    drift = masked(old - inputs.log_probs, inputs.tokens)
    if advantage.advantage_estimator == "gspo":
        # The ratio of a sequence: GSPO, arXiv:2507.18071, eq. 7, the same for all its tokens.
        drift = masked(
            sample_mean(drift, inputs.tokens, context)[inputs.tokens.sample], inputs.tokens
        )
    ratio = torch.exp(-drift)
    if advantage.advantage_estimator == "cispo":
        surrogate = cispo_surrogate(ratio, inputs.log_probs, inputs.advantages, config)
    else:
        surrogate = clipped_surrogate(ratio, inputs.advantages, config)
    report = {"ppo_kl": drift, "pg_clipfrac": surrogate.clipped}
    token_drift = old - inputs.log_probs
    pg_loss = _masked_sequences(surrogate.loss, token_drift, inputs, off_policy, context, report)
    pg_loss = _corrected(pg_loss, token_drift, inputs, off_policy, importance, report)
    loss = weighted_sum(pg_loss, inputs.tokens)
    report["pg_loss"] = pg_loss
    if inputs.entropy is not None:
        loss = _plus(loss, -config.entropy_coef, inputs.entropy, inputs)
        report["entropy_loss"] = inputs.entropy
    if config.use_kl_loss:
        kl = _reference_kl(inputs, old, config)
        loss = _plus(loss, config.kl_loss_coef, kl, inputs)
        report["kl_loss"] = kl
    metrics = {name: weighted_sum(x.detach(), inputs.tokens) for name, x in report.items()}
    return LossOutput(loss, {"loss": loss.detach(), **metrics})


def _old_log_probs(inputs: LossInputs, off_policy: OffPolicyConfig) -> Tensor:
    if not off_policy.use_rollout_logprobs:
        return inputs.old_log_probs
    assert inputs.rollout_log_probs is not None, "--use-rollout-logprobs without them in the batch"
    return inputs.rollout_log_probs


def _masked_sequences(
    pg_loss: Tensor,
    drift: Tensor,
    inputs: LossInputs,
    off_policy: OffPolicyConfig,
    context: Reduce,
    report: dict[str, Tensor],
) -> Tensor:
    if not off_policy.use_opsm:
        return pg_loss
    keep = off_policy_mask(drift, inputs.advantages, inputs.tokens, off_policy.opsm_delta, context)
    report["opsm_clipfrac"] = 1 - keep
    return pg_loss * keep


def _corrected(
    pg_loss: Tensor,
    drift: Tensor,
    inputs: LossInputs,
    off_policy: OffPolicyConfig,
    importance: ImportanceFunction | None,
    report: dict[str, Tensor],
) -> Tensor:
    """Apply importance weights; add to ``report`` what they did."""
    wanted = off_policy.use_tis or off_policy.get_mismatch_metrics
    if inputs.rollout_log_probs is None:
        assert not wanted, "--use-tis and --get-mismatch-metrics need the engines' probabilities"
        return pg_loss
    train = masked(inputs.old_log_probs, inputs.tokens)
    rollout = masked(inputs.rollout_log_probs, inputs.tokens)
    report["train_rollout_logprob_abs_diff"] = (train - rollout).abs()
    if not wanted:
        return pg_loss
    if importance is None:
        bounds = {"low": off_policy.tis_clip_low, "high": off_policy.tis_clip}
        found = truncated(train, rollout, **bounds)
        weighted = pg_loss * found.weights
        report |= found.metrics
    else:
        weighted, metrics = importance(pg_loss, inputs)
        report |= metrics
    report["ois"] = torch.exp(-drift)
    return weighted if off_policy.use_tis else pg_loss


def _plus(loss: Tensor, coefficient: float, term: Tensor, inputs: LossInputs) -> Tensor:
    """A coefficient of 0 reports the term and leaves it out of the graph."""
    return loss + coefficient * weighted_sum(term, inputs.tokens) if coefficient else loss


def _reference_kl(inputs: LossInputs, old: Tensor, config: PolicyLossConfig) -> Tensor:
    assert inputs.ref_log_probs is not None, "--use-kl-loss without reference log-probabilities"
    new = masked(inputs.log_probs, inputs.tokens)
    ratio = torch.exp(new - masked(old, inputs.tokens)) if config.use_unbiased_kl else None
    return approx_kl(
        new, masked(inputs.ref_log_probs, inputs.tokens), config.kl_loss_type, ratio=ratio
    )
