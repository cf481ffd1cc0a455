"""Which model is trained, and which part of it."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model; its architecture comes from ``config.json``."""

    hf_checkpoint: str = ""
    """Hugging Face directory: config.json, tokenizer and safetensors weights. Required."""
    model_name: str | None = None
    """Model family, when it is not to be taken from config.json's model_type."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag(default="auto", ours=True)
    """What the trainer computes in; auto is bf16 on GPUs and fp32 on CPU, or what --bf16 or --fp16
    say."""
    compile_layers: bool | None = flag(default=None, switch=True, ours=True)
    """Compile the trainer's dense layers; by default on GPUs, unless --recompute-modules names
    parts of them besides core_attn."""
    only_train_params_name_list: tuple[str, ...] | None = None
    """Regular expressions: train only the parameters whose name one of them matches. Layers and
    experts are counted over the whole model."""
    freeze_params_name_list: tuple[str, ...] | None = None
    """Regular expressions: do not train the parameters whose name one of them matches."""
    custom_model_provider_path: str | None = None
    """Function (pre_process, post_process, vp_stage=None) that builds the Megatron model."""
    padded_vocab_size: int | None = flag(default=None, at_least=1)
    """Rows of the embedding table, padding included; derived from the vocabulary by default."""
    qwen_gdn_backend: str = flag(
        default="fla", planned="no family with gated delta nets is there yet: leave it out"
    )
    """Kernel of gated delta nets, fla or flashqla."""
    freeze_indexer: bool = flag(
        default=False, planned="no family with sparse attention is there: leave it out"
    )
    """Do not train the indexer of sparse attention."""
    allgather_cp: bool = flag(
        default=False, planned="context parallelism is the zig-zag kind: leave it out"
    )
    """Contiguous context parallelism for sparse attention."""
    enable_mtp_training: bool = flag(
        default=False, planned="multi-token prediction heads are not trained: leave it out"
    )
    """Train multi-token prediction layers."""
