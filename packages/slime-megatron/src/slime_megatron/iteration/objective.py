"""What a trainer optimises, and what it has to know for that before the first step."""

from dataclasses import dataclass, field
from typing import Literal

from slime_core.advantages.custom import CustomAdvantages
from slime_core.config.algorithm import (
    AdvantageConfig,
    Aggregation,
    CriticConfig,
    LossType,
    PolicyLossConfig,
    PreferenceConfig,
)
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.config.reference import DistillationConfig
from slime_core.hooks.batch_functions import Postprocess
from slime_core.losses.functions import LossFunctions

from slime_megatron.iteration.custom_loss import CustomLoss
from slime_megatron.iteration.passes import Entropy

REFERENCE, TEACHER, OLD_ACTOR = "ref", "teacher", "old_actor"
"""Policies besides the trained one, by the name their weights are kept under."""

Role = Literal["actor", "critic"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is optimised."""

    advantage: AdvantageConfig
    policy_loss: PolicyLossConfig
    off_policy: OffPolicyConfig
    critic: CriticConfig = field(default_factory=CriticConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    role: Role = "actor"
    custom_advantages: CustomAdvantages | None = None
    """--custom-advantage-function-path."""
    functions: LossFunctions = field(default_factory=LossFunctions)
    """--custom-tis-function-path, --custom-pg-loss-reducer-function-path."""
    custom_loss: CustomLoss | None = None
    """--custom-loss-function-path."""
    postprocess: Postprocess | None = None
    """--rollout-data-postprocess-path."""

    @property
    def kind(self) -> LossType | Literal["value_loss"]:
        """Which loss is minimised; a critic's is not the user's to choose."""
        return "value_loss" if self.role == "critic" else self.policy_loss.loss_type

    @property
    def has_value_head(self) -> bool:
        """Whether the model gives one number per token instead of a distribution."""
        return self.kind in ("value_loss", "rm_loss")

    @property
    def learns_from_samples(self) -> bool:
        """Whether there are an old policy and advantages, as for what the policy itself wrote."""
        return self.kind in ("policy_loss", "custom_loss")

    @property
    def estimates(self) -> bool:
        """Whether advantages are estimated."""
        return self.learns_from_samples and self.advantage.compute_advantages_and_returns

    @property
    def kept_policies(self) -> tuple[str, ...]:
        """Whose log-probabilities of the batch are asked for, besides the trained policy's."""
        if self.kind == "dpo_loss":
            return (REFERENCE,)
        if not self.learns_from_samples:
            return ()
        penalised = self.policy_loss.use_kl_loss or self.advantage.kl_coef != 0
        taught = self.distillation.use_opd and self.distillation.opd_type == "megatron"
        wanted = {
            REFERENCE: penalised,
            TEACHER: taught,
            OLD_ACTOR: self.off_policy.keep_old_actor,
        }
        return tuple(name for name, needed in wanted.items() if needed)

    @property
    def clips_against_old_actor(self) -> bool:
        """Whether the ratio is taken against the weights that drew the tokens."""
        return self.off_policy.keep_old_actor and not self.off_policy.use_decoupled_ppo

    def needs_own_scores(self, num_steps: int) -> bool:
        """Whether the trained policy has to be asked before the first step.

        With a single step its own log-probabilities, detached, are the very same numbers, unless
        something needs them before.
        """
        if not self.learns_from_samples:
            return False
        if self.policy_loss.use_rollout_entropy:
            return True
        if self.clips_against_old_actor:
            return False
        compared = self.off_policy.use_rs or self.off_policy.get_mismatch_metrics
        if self.off_policy.use_rollout_logprobs and not compared:
            return False  # the engines' are the old policy's
        before = (
            self.advantage.kl_coef != 0,
            self.custom_advantages is not None,
            self.custom_loss is not None,
            self.postprocess is not None,
            self.distillation.use_opd,
            self.off_policy.tis_batch_normalize,
        )
        return num_steps > 1 or any(before)

    @property
    def step_entropy(self) -> Entropy:
        """What steps do about entropy: always reported, trained with a coefficient."""
        if self.kind != "policy_loss":
            return Entropy.NONE
        return Entropy.TRAIN if self.policy_loss.entropy_coef else Entropy.REPORT

    @property
    def aggregation(self) -> Aggregation:
        """What a step's loss is the mean over; pairs share a rollout, so preferences mean pairs."""
        pairs = self.kind in ("dpo_loss", "rm_loss")
        return "rollout" if pairs else self.policy_loss.loss_aggregation
