"""Settings of the trainer: a complete Megatron command line and what is known of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from slime_convert.layer_pattern import read_pattern
from slime_core.config.flags import Flag, derived
from slime_core.config.table import flags_from_table

if TYPE_CHECKING:
    from slime_core.schedule.layout import ParallelLayout

OWNER = "megatron"

MEGATRON_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        # What post-training wants: small constant steps, no dropout, state spread over ranks.
        "lr": 1e-6,
        "lr_decay_style": "constant",
        "clip_grad": 1.0,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "use_distributed_optimizer": True,
        "ckpt_format": "torch_dist",
        "ckpt_fully_parallel_load": True,
        "moe_token_dispatcher_type": "alltoall",
        "tokenizer_type": "NullTokenizer",
        # What megatron-core wants where neither TransformerEngine nor apex is installed.
        "transformer_impl": "local",
        "no_persist_layer_norm": True,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_gelu_fusion": False,
        "bias_swiglu_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
    }
)
"""Megatron destinations whose default slime changes."""

REQUIRED: Mapping[str, Any] = MappingProxyType(
    {
        "transformer_impl": "local",
        "no_persist_layer_norm": True,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_swiglu_fusion": False,
        "bias_gelu_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
        "position_embedding_type": "rope",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ckpt_format": "torch_dist",
    }
)
"""Megatron destinations that follow from how the model is built here: modules of our own on PyTorch
kernels, no TransformerEngine, no apex, and no dropout, because the log-probabilities of a policy
must not be random. A command line may repeat them, not change them."""

RANK_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {**REQUIRED, "moe_token_dispatcher_type": "alltoall"}
)
"""What a rank's own parser takes for granted where Megatron's would take something else."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "train_iters": "it follows from --num-rollout and --num-steps-per-rollout",
        "train_samples": "the length of a run is given with --num-rollout",
        "eval_iters": "evaluation is given with --eval-prompt-data and --eval-interval",
        "data_path": "prompts are given with --prompt-data",
        "train_data_path": "prompts are given with --prompt-data",
        "valid_data_path": "evaluation sets are given with --eval-prompt-data",
        "test_data_path": "evaluation sets are given with --eval-prompt-data",
        "data_args_path": "prompts are given with --prompt-data",
        "mock_data": "prompts are given with --prompt-data",
        "tokenizer_model": "the tokenizer is the one of --hf-checkpoint",
        "vocab_file": "the tokenizer is the one of --hf-checkpoint",
        "merge_file": "the tokenizer is the one of --hf-checkpoint",
        "tensorboard_dir": "TensorBoard files go to --output-dir",
        "yaml_cfg": "give flags, or a file of them with --custom-config-path",
        "exit_interval": "the length of a run is given with --num-rollout",
        "exit_duration_in_mins": "the length of a run is given with --num-rollout",
        "skip_train": "--num-rollout 0 only evaluates",
        "perform_rl_step": "reinforcement learning is slime's own loop",
        "use_torch_fsdp2": "memory is shared out by --use-distributed-optimizer and parallelism",
        "use_megatron_fsdp": "memory is shared out by --use-distributed-optimizer and parallelism",
        "ckpt_convert_format": "checkpoints are converted by slime-convert",
        "mtp_num_layers": "multi-token prediction is not trained",
    }
)
"""Megatron destinations that mean nothing in this trainer, and what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronConfig:
    """What Megatron's own parser is given, and the values it will arrive at."""

    argv: tuple[str, ...] = derived(default=())
    """The whole command line for ``megatron.training.arguments``, derived flags included."""
    values: Mapping[str, Any] = derived(factory=dict[str, Any])
    """Destination -> value for every Megatron flag: given, derived, re-defaulted or default."""
    world_size: int = derived(default=1)
    """Trainer ranks."""

    def __getitem__(self, dest: str) -> Any:
        """The value of one Megatron destination."""
        return self.values[dest]

    @property
    def layout(self) -> "ParallelLayout":
        """Sizes of the parallel groups."""
        from slime_core.schedule.layout import ParallelLayout

        tp, pp, cp = model_parallel_sizes(self.values)
        return ParallelLayout(
            dp=self.world_size // (tp * pp * cp),
            cp=cp,
            tp=tp,
            pp=pp,
            vpp=virtual_stages(self.values),
            ep=self.values["expert_model_parallel_size"],
        )

    @property
    def seed(self) -> int:
        """Seed of initialisation."""
        return self.values["seed"]

    @property
    def train_iters(self) -> int:
        """Optimizer steps of the whole run."""
        return self.values["train_iters"]


@cache
def megatron_flags() -> tuple[Flag, ...]:
    """Every flag of Megatron's parser, from the generated table."""
    text = Path(__file__).with_name("flags.json").read_text(encoding="utf-8")
    return tuple(flags_from_table(text, OWNER))


def model_parallel_sizes(values: Mapping[str, Any]) -> tuple[int, int, int]:
    """Tensor, pipeline and context parallel size."""
    return (
        values["tensor_model_parallel_size"],
        values["pipeline_model_parallel_size"],
        values["context_parallel_size"],
    )


def virtual_stages(values: Mapping[str, Any]) -> int:
    """Model chunks per pipeline stage; 1 without interleaving."""
    if values["num_virtual_stages_per_pipeline_rank"]:
        return values["num_virtual_stages_per_pipeline_rank"]
    if values["num_layers_per_virtual_pipeline_stage"]:
        per_stage = values["num_layers"] // values["pipeline_model_parallel_size"]
        return max(1, per_stage // values["num_layers_per_virtual_pipeline_stage"])
    return 1


def command_line(values: Mapping[str, Any], flags: Iterable[Flag]) -> tuple[str, ...]:
    """Words that make a rank's parser arrive at ``values``; its defaults are left out.

    Raises:
        ValueError: no flag can express one of the values.
    """
    by_dest: dict[str, list[Flag]] = {}
    for flag in flags:
        by_dest.setdefault(flag.dest, []).append(flag)
    return tuple(
        word
        for dest, value in values.items()
        if dest in by_dest
        for word in _words(by_dest[dest], dest, value)
    )


def _words(flags: list[Flag], dest: str, value: Any) -> list[str]:
    """The words for one destination, by whichever of its flags can say it."""
    if value is None or same(value, RANK_DEFAULTS.get(dest, flags[0].default)):
        return []
    for flag in flags:
        if flag.arity == "none":
            if flag.const == value:
                return [flag.names[0]]
            if value is False and flag.negatives:
                return [flag.negatives[0]]
        elif not isinstance(value, bool):
            if isinstance(value, list | tuple) and flag.arity == "one":
                return [flag.names[0], str(list(value))]  # a pattern of layers
            listed: Iterable[Any] = value if isinstance(value, list | tuple) else (value,)
            return [flag.names[0], *(str(item) for item in listed)]
    # Megatron's store_true flags without a default say None where False is meant.
    if value is False and flags[0].default is None:
        return []
    raise ValueError(f"no flag of Megatron sets {dest} to {value!r}")


def same(value: Any, default: Any) -> bool:
    """Equality that tells neither a tuple from a list nor a pattern of layers from its text."""
    return _plain(value) == _plain(default)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str) and value.isdigit():
        return int(value)
    return read_pattern(value)
