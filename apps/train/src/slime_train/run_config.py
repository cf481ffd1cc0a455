"""The whole configuration of a run, checked and complete."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slime_core.checkpoints.resume import HOW_TO_LOAD, going_on
from slime_core.config.algorithm import (
    AdvantageConfig,
    CriticConfig,
    OptimizerConfig,
    PolicyLossConfig,
    PreferenceConfig,
    ShapingConfig,
)
from slime_core.config.batch import BatchConfig
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.cluster import ClusterConfig
from slime_core.config.command import CommandConfig
from slime_core.config.data import DataConfig
from slime_core.config.debug import DebugConfig
from slime_core.config.evaluation import EvalConfig
from slime_core.config.machines import Machine, machines
from slime_core.config.model import ModelConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.config.reference import DistillationConfig, ReferenceConfig
from slime_core.config.rollout import HealthConfig, RolloutConfig, SamplingConfig
from slime_core.config.sync import WeightSyncConfig
from slime_core.config.tracking import TrackingConfig
from slime_megatron.config import MegatronConfig
from slime_rewards.config import RewardConfig
from slime_sglang.config import SGLangConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One attribute per section. Made by ``resolve``; crosses processes by pickle."""

    cluster: ClusterConfig
    model: ModelConfig
    data: DataConfig
    sampling: SamplingConfig
    rollout: RolloutConfig
    health: HealthConfig
    batch: BatchConfig
    advantage: AdvantageConfig
    shaping: ShapingConfig
    policy_loss: PolicyLossConfig
    preference: PreferenceConfig
    off_policy: OffPolicyConfig
    reference: ReferenceConfig
    distillation: DistillationConfig
    critic: CriticConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    sync: WeightSyncConfig
    evaluation: EvalConfig
    tracking: TrackingConfig
    debug: DebugConfig
    reward: RewardConfig
    sglang: SGLangConfig
    megatron: MegatronConfig
    flat: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Everything under upstream's attribute names, for ``FlatArgs``."""
    hf_config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """config.json of the model."""
    of_critic: "RunConfig | None" = None
    """The same run as its critic is configured; only with --advantage-estimator ppo."""

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Who runs where."""
        trains, away = not self.debug.debug_rollout_only, self.rollout.rollout_external_engine_addrs
        return machines(self.cluster, trains=trains, generates=not away)


def continued(config: RunConfig) -> RunConfig:
    """For a run that goes on from a checkpoint of its own: how it was started is over."""
    checkpoint, critic = going_on(config.checkpoint), config.of_critic
    changes = {name: getattr(checkpoint, name) for name in HOW_TO_LOAD}
    return replace(
        config,
        checkpoint=checkpoint,
        data=replace(config.data, start_rollout_id=None),
        megatron=config.megatron.changed(changes),
        flat={**config.flat, **changes, "start_rollout_id": None},
        of_critic=None if critic is None else continued(critic),
    )


SECTIONS: Mapping[str, type] = {
    "cluster": ClusterConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "sampling": SamplingConfig,
    "rollout": RolloutConfig,
    "health": HealthConfig,
    "batch": BatchConfig,
    "advantage": AdvantageConfig,
    "shaping": ShapingConfig,
    "policy_loss": PolicyLossConfig,
    "preference": PreferenceConfig,
    "off_policy": OffPolicyConfig,
    "reference": ReferenceConfig,
    "distillation": DistillationConfig,
    "critic": CriticConfig,
    "optimizer": OptimizerConfig,
    "checkpoint": CheckpointConfig,
    "sync": WeightSyncConfig,
    "evaluation": EvalConfig,
    "tracking": TrackingConfig,
    "debug": DebugConfig,
    "reward": RewardConfig,
    "sglang": SGLangConfig,
    "command": CommandConfig,
}
"""Every section whose fields are slime's own flags."""
