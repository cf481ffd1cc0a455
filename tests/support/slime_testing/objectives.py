"""Every kind of objective, as sections of a trainer's configuration."""

from collections.abc import Mapping
from typing import Any

from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig

PAIRS = ("dpo", "rm")
"""Objectives of chosen and rejected responses."""

OBJECTIVES: Mapping[str, dict[str, Any]] = {
    "grpo": {
        "policy_loss": PolicyLossConfig(
            use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type="k2", entropy_coef=0.01
        ),
        "off_policy": OffPolicyConfig(use_tis=True),
    },
    "gspo": {
        "advantage": AdvantageConfig(advantage_estimator="gspo", normalize_advantages=True),
        "policy_loss": PolicyLossConfig(policy_surrogate="gspo", loss_aggregation="token"),
        "off_policy": OffPolicyConfig(
            use_tis=True,
            tis_level="sequence",
            tis_batch_normalize=True,
            tis_clip=1e4,
            use_rs=True,
            rs_level="geometric",
            rs_upper_bound=1e4,
        ),
    },
    "sft": {"policy_loss": PolicyLossConfig(loss_type="sft_loss")},
    "critic": {"role": "critic"},
    "dpo": {"policy_loss": PolicyLossConfig(loss_type="dpo_loss")},
    "rm": {"policy_loss": PolicyLossConfig(loss_type="rm_loss")},
    "custom": {
        "policy_loss": PolicyLossConfig(
            loss_type="custom_loss",
            custom_loss_function_path="slime_testing.custom_losses.policy_gradient",
        )
    },
    "the same built in": {"policy_loss": PolicyLossConfig(entropy_coef=0.01)},
}
