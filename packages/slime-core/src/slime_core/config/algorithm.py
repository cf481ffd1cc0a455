"""The objective: advantages, and the loss that is made of them."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.checked import check_section
from slime_core.config.flags import flag

Estimator = Literal[
    "grpo",
    "gspo",
    "cispo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "ppo",
    "rloo",
    "remax",
    "maxrl",
    "gdpo",
]
LossType = Literal["policy_loss", "sft_loss", "custom_loss", "dpo_loss", "rm_loss"]
OFFLINE_LOSSES = ("sft_loss", "dpo_loss", "rm_loss")
"""Loss types that learn from given responses: nothing is sampled, nothing is estimated."""
PAIR_LOSSES = ("dpo_loss", "rm_loss")
"""Those of them that learn from pairs of a chosen and a rejected response."""
Surrogate = Literal["clip", "cispo", "gspo", "sapo"]
Aggregation = Literal["token", "sample", "rollout", "constant", "sequence-sum"]
KlType = Literal["k1", "k2", "k3", "low_var_kl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageConfig:
    """How rewards become advantages."""

    advantage_estimator: Estimator = "grpo"
    """Estimator; gspo and cispo also choose the surrogate of that name."""
    gamma: float = flag(default=1.0, at_least=0, at_most=1)
    """Discount per token."""
    lambd: float = flag(default=1.0, at_least=0, at_most=1)
    """Decay of generalised advantage estimation."""
    kl_coef: float = flag(default=0.0, at_least=0)
    """KL penalty against the reference, inside the reward; not together with --kl-loss-coef."""
    normalize_advantages: bool = False
    """Whiten advantages over all trained tokens of an iteration."""
    normalize_rewards: bool = flag(
        "--disable-rewards-normalization",
        default=True,
        negated="Do not centre rewards within the group of one prompt.",
    )
    """Centre rewards within the group of one prompt."""
    normalize_grpo_std: bool = flag(
        "--disable-grpo-std-normalization",
        default=True,
        negated="Do not divide centred rewards by the group's standard deviation (Dr.GRPO).",
    )
    """Divide centred rewards by the group's standard deviation; off is Dr.GRPO."""
    gdpo_reward_keys: tuple[str, ...] = flag(default=(), ours=True)
    """Entries of a dictionary reward that gdpo normalises each on its own."""
    gdpo_reward_weights: tuple[float, ...] = flag(default=(), ours=True)
    """Weight of each of --gdpo-reward-keys in the sum; 1 by default."""
    compute_advantages_and_returns: bool = flag(
        "--disable-compute-advantages-and-returns",
        default=True,
        negated="Do not estimate advantages, where the loss needs none.",
    )
    """Estimate advantages; off where the loss needs none."""
    custom_advantage_function_path: str | None = None
    """Function (args, rollout_data) that sets advantages and returns."""

    def __post_init__(self) -> None:
        check_section(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapingConfig:
    """What is added to a reward before advantages are estimated."""

    overlong_buffer_len: int | None = flag(default=None, at_least=1, ours=True)
    """Responses longer than --rollout-max-response-len minus so many tokens are penalised, linearly
    up to the full penalty at the limit (DAPO)."""
    overlong_penalty_factor: float = flag(default=1.0, at_least=0, ours=True)
    """The full penalty."""
    length_penalty_type: Literal["none", "linear", "group"] = flag(default="none", ours=True)
    """linear: in proportion to the response's share of --rollout-max-response-len; group: relative
    to the shortest and longest response of the prompt (Kimi k1.5)."""
    length_penalty_coef: float = flag(default=0.0, at_least=0, ours=True)
    """Weight of the length penalty."""

    def __post_init__(self) -> None:
        check_section(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLossConfig:
    """What the optimizer minimises.

    In a run --eps-clip-high follows --eps-clip, --policy-surrogate the estimator, and
    --loss-aggregation --calculate-per-token-loss. Made by hand, every field counts as it stands.
    """

    loss_type: LossType = "policy_loss"
    """Policy objective; likelihood of given responses; a function of the user's; preferences
    (dpo_loss); a reward model from preferences (rm_loss)."""
    policy_surrogate: Surrogate = flag(default="clip", ours=True)
    """Form of the policy objective; follows --advantage-estimator unless given."""
    eps_clip: float = flag(default=0.2, at_least=0)
    """Lower clip: the ratio counts down to 1 - eps_clip."""
    eps_clip_high: float = flag(default=0.2, at_least=0)
    """Upper clip: the ratio counts up to 1 + eps_clip_high; --eps-clip unless given."""
    eps_clip_c: float | None = flag(default=None, above=1)
    """Dual clip: bound on the loss of tokens with negative advantage."""
    sapo_temperature_positive: float = flag(default=1.0, above=0, ours=True)
    """Sharpness of sapo's gate where the advantage is positive."""
    sapo_temperature_negative: float = flag(default=1.05, above=0, ours=True)
    """Sharpness of sapo's gate where the advantage is negative."""
    loss_aggregation: Aggregation = flag(default="rollout", ours=True)
    """What a step's loss is the mean over: trained tokens; samples; rollouts (siblings cut from one
    execution together); rollouts, each summed and divided by --loss-aggregation-constant; rollouts,
    each summed."""
    loss_aggregation_constant: float | None = flag(default=None, above=0, ours=True)
    """Divisor of --loss-aggregation constant; --rollout-max-response-len by default."""
    calculate_per_token_loss: bool = False
    """Same as --loss-aggregation token."""
    kl_loss_type: KlType = "k1"
    """Estimator of the KL divergence, in the reward and in the loss."""
    use_kl_loss: bool = False
    """Add the KL divergence from the reference policy to the loss."""
    kl_loss_coef: float = flag(default=0.0, at_least=0)
    """Weight of that term; 0 only reports it."""
    use_unbiased_kl: bool = False
    """Weigh the KL term with the policy ratio, which makes its gradient unbiased."""
    entropy_coef: float = flag(default=0.0)
    """Weight of the entropy bonus."""
    use_top_p_log_probs: bool = flag(default=False, ours=True)
    """Take log-probabilities over the --rollout-top-p nucleus of each token instead of over the
    whole vocabulary."""
    custom_loss_function_path: str | None = None
    """Function (args, batch, logits, sum_of_sample_mean) that returns loss and metrics."""
    custom_pg_loss_reducer_function_path: str | None = None
    """Function (total_lengths, response_lengths, masks, calculate_per_token_loss) that returns the
    reduction of the policy loss to a sum."""
    use_rollout_entropy: bool = False
    """Report the policy's entropy on the rollout's tokens before the steps."""
    recompute_loss_function: bool = False
    """Recompute the loss in the backward pass, from hidden states; this is done anyway."""

    def __post_init__(self) -> None:
        check_section(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceConfig:
    """Learning from pairs: a chosen and a rejected response to one prompt."""

    chosen_key: str = flag(default="chosen", ours=True)
    """Column of the preferred response: text, or messages whose last one is the response."""
    rejected_key: str = flag(default="rejected", ours=True)
    """Column of the other response."""
    dpo_beta: float = flag(default=0.1, above=0, ours=True)
    """Strength of the implicit KL constraint of dpo_loss."""
    dpo_loss_type: Literal["sigmoid", "ipo", "hinge"] = flag(default="sigmoid", ours=True)
    """DPO's own loss, that of IPO, or a hinge (SLiC)."""
    dpo_label_smoothing: float = flag(default=0.0, at_least=0, at_most=0.5, ours=True)
    """Share of pairs taken to be labelled the wrong way round (conservative DPO)."""

    def __post_init__(self) -> None:
        check_section(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticConfig:
    """The value function of --advantage-estimator ppo."""

    value_clip: float = flag(default=0.2, at_least=0)
    """A value moves at most so far from its old one before its loss stops counting."""
    num_critic_only_steps: int = flag(default=0, at_least=0)
    """Iterations at the start that train only the critic."""

    def __post_init__(self) -> None:
        check_section(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """What happens to the optimizer's moments, and to steps that cannot be taken."""

    reset_optimizer_states: bool = False
    """Forget the optimizer's moments before each iteration."""
    use_stateless_adam: bool = False
    """Forget them before each step; needs --optimizer adam and --no-save-optim."""
    max_skipped_steps: int = flag(default=10, at_least=0, ours=True)
    """Steps in a row that may be left out because their gradient is infinite or not a number; one
    more ends the run. With --no-check-for-nan-in-loss-and-grad there is no limit."""
