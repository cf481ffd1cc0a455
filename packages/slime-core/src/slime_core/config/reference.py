"""Policies besides the trained one: the reference of KL terms, the teacher of distillation."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceConfig:
    """The policy that KL terms and dpo_loss compare with."""

    ref_load: str = ""
    """Reference weights: a Megatron checkpoint or a Hugging Face directory; --hf-checkpoint by
    default."""
    ref_ckpt_step: int | None = flag(default=None, at_least=0)
    """Iteration of the reference checkpoint; its newest by default."""
    ref_update_interval: int | None = flag(default=None, at_least=1)
    """Copy the policy to the reference every so many iterations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """On-policy distillation: the policy's own samples, judged token by token by a teacher."""

    use_opd: bool = False
    """Subtract the log-ratio of policy to teacher from the advantages."""
    opd_type: Literal["sglang", "megatron"] | None = None
    """Where the teacher runs: an SGLang server (any model with the same tokenizer), or the
    trainer's own ranks (same architecture)."""
    opd_kl_coef: float = flag(default=1.0, at_least=0)
    """Weight of the distillation term."""
    opd_teacher_load: str | None = None
    """The teacher's checkpoint. With --opd-type sglang a Hugging Face directory for which an engine
    is started, unless --rm-url names a teacher that already runs; on GPUs one has to."""
    opd_teacher_ckpt_step: int | None = flag(default=None, at_least=0)
    """Iteration of the teacher's checkpoint; its newest by default."""
