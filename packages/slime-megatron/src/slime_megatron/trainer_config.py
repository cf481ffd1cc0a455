"""The sections of a configuration that a trainer rank reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slime_core.advantages.custom import custom_advantages
from slime_core.config.algorithm import (
    AdvantageConfig,
    CriticConfig,
    OptimizerConfig,
    PolicyLossConfig,
    PreferenceConfig,
)
from slime_core.config.batch import BatchConfig
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.debug import DebugConfig
from slime_core.config.model import ModelConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.config.reference import DistillationConfig, ReferenceConfig
from slime_core.config.sync import WeightSyncConfig
from slime_core.errors import CheckpointError
from slime_core.files.staging import TRACKER, latest
from slime_core.hooks.batch_functions import data_postprocess
from slime_core.losses.functions import LossFunctions, custom_importance, custom_reducer

from slime_megatron.config import MegatronConfig
from slime_megatron.iteration.custom_loss import custom_loss
from slime_megatron.iteration.objective import REFERENCE, TEACHER, Objective, Role


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Crosses processes; the same on every rank."""

    megatron: MegatronConfig
    model: ModelConfig
    batch: BatchConfig
    advantage: AdvantageConfig
    policy_loss: PolicyLossConfig
    off_policy: OffPolicyConfig
    reference: ReferenceConfig
    checkpoint: CheckpointConfig
    sync: WeightSyncConfig
    critic: CriticConfig = field(default_factory=CriticConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    rollout_data_postprocess_path: str | None = None
    role: Role = "actor"
    temperature: float = 1.0
    """Of sampling: log-probabilities are those of the distribution that was sampled from."""
    top_p: float = 1.0
    """Of sampling, likewise, where --use-top-p-log-probs asks for it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    flat: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What user functions see as ``args``."""

    @property
    def objective(self) -> Objective:
        """What is optimised; loads the user's functions."""
        flat = self.flat
        advantages = self.advantage.custom_advantage_function_path
        importance = self.off_policy.custom_tis_function_path
        reducer = self.policy_loss.custom_pg_loss_reducer_function_path
        loss = self.policy_loss.custom_loss_function_path
        postprocess = self.rollout_data_postprocess_path
        return Objective(
            advantage=self.advantage,
            policy_loss=self.policy_loss,
            off_policy=self.off_policy,
            critic=self.critic,
            preference=self.preference,
            distillation=self.distillation,
            role=self.role,
            custom_advantages=custom_advantages(advantages, flat) if advantages else None,
            functions=LossFunctions(
                importance=custom_importance(importance, flat) if importance else None,
                reducer=custom_reducer(reducer, flat) if reducer else None,
            ),
            custom_loss=custom_loss(loss, flat) if loss else None,
            postprocess=data_postprocess(postprocess, flat) if postprocess else None,
        )

    @property
    def initial_weights(self) -> Path:
        """--load, if that is a Hugging Face directory, else --hf-checkpoint."""
        given = self.checkpoint.load
        if given is not None and is_hugging_face(Path(given)):
            return Path(given)
        return Path(self.model.hf_checkpoint)

    def fixed_weights(self, policy: str) -> Path:
        """Where the weights of the reference or the teacher come from.

        Raises:
            CheckpointError: a directory that holds neither kind of weights.
        """
        if policy == TEACHER:
            assert self.distillation.opd_teacher_load is not None, "checked before the start"
            step = self.distillation.opd_teacher_ckpt_step
            return weights_in("--opd-teacher-load", self.distillation.opd_teacher_load, step)
        assert policy == REFERENCE, policy
        directory = self.reference.ref_load or self.model.hf_checkpoint
        return weights_in("--ref-load", directory, self.reference.ref_ckpt_step)


def is_hugging_face(directory: Path) -> bool:
    """Whether these are weights as transformers keeps them."""
    return (directory / "config.json").is_file()


def weights_in(flag: str, given: str, step: int | None) -> Path:
    """A Hugging Face directory itself; of checkpoints the one of ``step``, or the newest one."""
    directory = Path(given)
    if is_hugging_face(directory):
        return directory
    found = latest(directory, step, flag=flag.replace("-load", "-ckpt-step"))
    if found is None:
        raise CheckpointError(
            f"{flag} {directory} is neither a Hugging Face directory (no config.json) nor a "
            f"directory of checkpoints (no {TRACKER})"
        )
    return found
