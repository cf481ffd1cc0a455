"""The policy objective: a surrogate, its corrections, entropy and KL terms."""

from dataclasses import replace

from torch import Tensor

from slime_core.batch import LossInputs
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.interfaces import Reduce
from slime_core.losses.aggregate import LossOutput, masked, weighted_sum
from slime_core.losses.corrections import applies, correct, weighs
from slime_core.losses.functions import LossFunctions
from slime_core.losses.kl import approx_kl
from slime_core.losses.mismatch import mismatch_metrics
from slime_core.losses.ratio import ratio_of
from slime_core.losses.report import token_sums
from slime_core.losses.sequence import off_policy_mask, sample_mean
from slime_core.losses.surrogates import surrogate

Report = dict[str, Tensor]
"""Vectors of tokens whose means are reported."""

_BUILT_IN = LossFunctions()
_UNWEIGHTED = {"use_tis": False, "use_decoupled_ppo": False, "get_mismatch_metrics": False}
"""The corrections that are left where a function of the user's weighs: rejection."""


def policy_loss(
    inputs: LossInputs,
    config: PolicyLossConfig,
    off_policy: OffPolicyConfig,
    context: Reduce,
    *,
    functions: LossFunctions = _BUILT_IN,
    mean_weight: float = 1.0,
) -> LossOutput:
    """Policy loss - entropy_coef * entropy + kl_loss_coef * KL, summed over this rank's tokens.

    ``context`` adds over the ranks that share a sample's tokens. The ratio is taken against
    ``inputs.old_log_probs``, or the engines' with --use-rollout-logprobs. ``mean_weight`` is what
    importance weights are divided by (``corrections.weight_sums``). What stands where nothing is
    trained on, even infinities, reaches neither the loss nor its gradient.
    """
    inputs = _cleaned(inputs)
    tokens, report = inputs.tokens, Report()
    drift = _old_log_probs(inputs, off_policy) - inputs.log_probs
    ratio = ratio_of(-_of_sequences(drift, inputs, config, context, report))
    objective = surrogate(ratio, inputs.log_probs, inputs.advantages, config)
    report["pg_clipfrac"] = objective.clipped
    pg_loss = _without_drifted(objective.loss, drift, inputs, off_policy, context, report)
    pg_loss = _corrected(pg_loss, inputs, off_policy, context, functions, mean_weight, report)
    if functions.reducer is None:
        loss = weighted_sum(pg_loss, tokens)
    else:
        loss = functions.reducer(pg_loss, tokens, context)
    terms = {"pg_loss": loss.detach()}
    report["ois"] = ratio_of(-drift)
    if inputs.entropy is not None:
        loss = _plus(loss, -config.entropy_coef, inputs.entropy, inputs)
        report["entropy_loss"] = inputs.entropy
    if config.use_kl_loss:
        kl = _reference_kl(inputs, drift, config)
        loss = _plus(loss, config.kl_loss_coef, kl, inputs)
        report["kl_loss"] = kl
    return LossOutput(loss, {"loss": loss.detach(), **terms, **token_sums(report, tokens)})


def _cleaned(inputs: LossInputs) -> LossInputs:
    """Zeros wherever nothing is trained on."""
    names = ("log_probs", "old_log_probs", "advantages", "entropy", "ref_log_probs")
    vectors = {
        name: masked(x, inputs.tokens)
        for name in (*names, "rollout_log_probs", "behaviour_log_probs")
        if (x := getattr(inputs, name)) is not None
    }
    return replace(inputs, **vectors)


def _old_log_probs(inputs: LossInputs, off_policy: OffPolicyConfig) -> Tensor:
    if not off_policy.use_rollout_logprobs:
        return inputs.old_log_probs
    assert inputs.rollout_log_probs is not None, "--use-rollout-logprobs without them in the batch"
    return inputs.rollout_log_probs


def _of_sequences(
    drift: Tensor, inputs: LossInputs, config: PolicyLossConfig, context: Reduce, report: Report
) -> Tensor:
    """The drift whose exponential is the ratio: with gspo that of the sequence, for all its tokens.

    s_i = exp(mean_t (log p - log p_old)).  Source: GSPO, arXiv:2507.18071, eq. 7.
    """
    if config.policy_surrogate == "gspo":
        drift = masked(
            sample_mean(drift, inputs.tokens, context)[inputs.tokens.sample], inputs.tokens
        )
    report["ppo_kl"] = drift
    return drift


def _without_drifted(
    pg_loss: Tensor,
    drift: Tensor,
    inputs: LossInputs,
    off_policy: OffPolicyConfig,
    context: Reduce,
    report: Report,
) -> Tensor:
    if not off_policy.use_opsm:
        return pg_loss
    keep = off_policy_mask(drift, inputs.advantages, inputs.tokens, off_policy.opsm_delta, context)
    report["opsm_clipfrac"] = 1 - keep
    return pg_loss * keep


def _corrected(
    pg_loss: Tensor,
    inputs: LossInputs,
    off_policy: OffPolicyConfig,
    context: Reduce,
    functions: LossFunctions,
    mean_weight: float,
    report: Report,
) -> Tensor:
    """Apply importance weights and rejection; add to ``report`` what they did."""
    old, rollout = inputs.old_log_probs, inputs.rollout_log_probs
    if rollout is not None:
        report["train_rollout_logprob_abs_diff"] = (old - rollout).abs()
    if not (weighs(off_policy) or off_policy.use_rs):
        return pg_loss
    behaviour = inputs.behaviour_log_probs if inputs.behaviour_log_probs is not None else rollout
    assert behaviour is not None, "corrections need the probabilities the tokens were drawn with"
    report |= mismatch_metrics(old, behaviour, inputs.tokens, context)
    if functions.importance is not None and weighs(off_policy):
        weighted, found = functions.importance(pg_loss, inputs, context)
        report |= found
        pg_loss = weighted if applies(off_policy) else pg_loss
        off_policy = replace(off_policy, **_UNWEIGHTED)
    made = correct(old, behaviour, inputs.tokens, off_policy, context, mean_weight=mean_weight)
    report |= made.metrics
    return pg_loss * made.keep * made.weights


def _plus(loss: Tensor, coefficient: float, term: Tensor, inputs: LossInputs) -> Tensor:
    """A coefficient of 0 reports the term and leaves it out of the graph."""
    return loss + coefficient * weighted_sum(term, inputs.tokens) if coefficient else loss


def _reference_kl(inputs: LossInputs, drift: Tensor, config: PolicyLossConfig) -> Tensor:
    assert inputs.ref_log_probs is not None, "--use-kl-loss without reference log-probabilities"
    ratio = ratio_of(-drift) if config.use_unbiased_kl else None
    return approx_kl(inputs.log_probs, inputs.ref_log_probs, config.kl_loss_type, ratio=ratio)
