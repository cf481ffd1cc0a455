"""The objective: advantages, losses, off-policy corrections, the reference policy."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag

_NO_CRITIC = "use grpo, gspo, cispo or a reinforce_plus_plus estimator, which need no critic"
_NO_TEACHER = "distillation from a teacher is not there yet: leave it out"
_NO_REPLAY = "no mixture-of-experts family is there yet: leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageConfig:
    """How rewards become advantages."""

    advantage_estimator: Literal[
        "grpo", "gspo", "cispo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "ppo"
    ] = flag(default="grpo", planned={"ppo": _NO_CRITIC})
    """Estimator; gspo and cispo also choose their own surrogate loss."""
    gamma: float = flag(default=1.0, at_least=0, at_most=1)
    """Discount per token."""
    lambd: float = flag(default=1.0, at_least=0, at_most=1)
    """Decay of generalised advantage estimation."""
    kl_coef: float = flag(default=0.0, at_least=0)
    """KL penalty against the reference, inside the reward; not together with --kl-loss-coef."""
    normalize_advantages: bool = False
    """Whiten advantages over all tokens of a step's data-parallel batch."""
    normalize_rewards: bool = flag("--disable-rewards-normalization", default=True, negated=True)
    """Centre rewards within the group of one prompt."""
    normalize_grpo_std: bool = flag("--disable-grpo-std-normalization", default=True, negated=True)
    """Divide centred rewards by the group's standard deviation."""
    compute_advantages_and_returns: bool = flag(
        "--disable-compute-advantages-and-returns", default=True, negated=True
    )
    """Estimate advantages; off in supervised fine-tuning, and only there."""
    custom_advantage_function_path: str | None = None
    """Function (args, rollout_data) that sets advantages and returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLossConfig:
    """What the optimizer minimises."""

    loss_type: Literal["policy_loss", "sft_loss", "custom_loss"] = flag(
        default="policy_loss", planned={"custom_loss": "use policy_loss or sft_loss"}
    )
    """Clipped policy objective, or negative log-likelihood of the responses."""
    eps_clip: float = flag(default=0.2, at_least=0)
    """Lower clip: the ratio counts down to 1 - eps_clip."""
    eps_clip_high: float = flag(default=0.2, at_least=0)
    """Upper clip: the ratio counts up to 1 + eps_clip_high; --eps-clip unless given."""
    eps_clip_c: float | None = flag(default=None, above=1)
    """Dual clip: bound on the loss of tokens with negative advantage."""
    value_clip: float = flag(default=0.2, at_least=0, planned=_NO_CRITIC)
    """Clip of the value function."""
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = "k1"
    """Estimator of the KL divergence, in the reward and in the loss."""
    use_kl_loss: bool = False
    """Add the KL divergence from the reference policy to the loss."""
    kl_loss_coef: float = flag(default=0.0, at_least=0)
    """Weight of that term; 0 only reports it."""
    use_unbiased_kl: bool = False
    """Weigh the KL term with the policy ratio, which makes its gradient unbiased."""
    entropy_coef: float = flag(default=0.0)
    """Weight of the entropy bonus."""
    calculate_per_token_loss: bool = False
    """Every token weighs the same, instead of every rollout."""
    custom_loss_function_path: str | None = flag(
        default=None, planned="use policy_loss or sft_loss"
    )
    """Function (args, batch, logits, sum_of_sample_mean) that returns loss and metrics."""
    custom_pg_loss_reducer_function_path: str | None = flag(
        default=None, planned="choose with --calculate-per-token-loss"
    )
    """Function that builds the reduction of the policy loss."""
    use_rollout_entropy: bool = False
    """Report the policy's entropy on the rollout's tokens before the steps."""
    num_critic_only_steps: int = flag(default=0, at_least=0, planned=_NO_CRITIC)
    """Iterations that train only the critic."""
    reset_optimizer_states: bool = flag(
        default=False, planned="the optimizer keeps its state: leave it out"
    )
    """Forget the optimizer's moments after each iteration."""
    use_stateless_adam: bool = flag(
        default=False, planned="the optimizer keeps its state: leave it out"
    )
    """Adam without moments."""
    recompute_loss_function: bool = flag(
        default=False, planned="log-probabilities are always recomputed: leave it out"
    )
    """Recompute the loss in the backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicyConfig:
    """What is done about weights that moved since the samples were drawn."""

    use_rollout_logprobs: bool = False
    """Take the engines' log-probabilities as those of the old policy."""
    use_tis: bool = False
    """Truncated importance sampling between engine and trainer."""
    tis_clip: float = flag(default=2.0, above=0)
    """Upper bound of the importance weight."""
    tis_clip_low: float = flag(default=0.0, at_least=0)
    """Lower bound of the importance weight."""
    custom_tis_function_path: str | None = None
    """Function that replaces truncated importance sampling."""
    get_mismatch_metrics: bool = False
    """Report the custom importance weights without using them."""
    use_opsm: bool = False
    """Leave out sequences with negative advantage that drifted from the old policy."""
    opsm_delta: float = flag(default=1e-4, at_least=0)
    """Mean KL per token beyond which a sequence has drifted."""
    keep_old_actor: bool = flag(
        default=False, planned="weights are published after every iteration: leave it out"
    )
    """Keep the weights that generated the samples for their log-probabilities."""
    use_routing_replay: bool = flag(default=False, planned=_NO_REPLAY)
    """Use the routing of the log-probability pass again in training."""
    use_rollout_routing_replay: bool = flag(default=False, planned=_NO_REPLAY)
    """Use the engines' expert routing in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceConfig:
    """The reference policy of KL terms, and teachers."""

    ref_load: str = ""
    """Reference weights: a Megatron checkpoint or a Hugging Face directory; --hf-checkpoint by
    default."""
    ref_ckpt_step: int | None = flag(default=None, at_least=0)
    """Iteration of the reference checkpoint; its newest by default."""
    ref_update_interval: int | None = flag(default=None, at_least=1)
    """Copy the policy to the reference every so many iterations."""
    use_opd: bool = flag(default=False, planned=_NO_TEACHER)
    """On-policy distillation."""
    opd_type: str | None = flag(default=None, planned=_NO_TEACHER)
    """Where the teacher runs, sglang or megatron."""
    opd_kl_coef: float = flag(default=1.0, planned=_NO_TEACHER)
    """Weight of the distillation term."""
    opd_teacher_load: str | None = flag(default=None, planned=_NO_TEACHER)
    """The teacher's checkpoint."""
    opd_teacher_ckpt_step: int | None = flag(default=None, planned=_NO_TEACHER)
    """Iteration of the teacher's checkpoint."""
