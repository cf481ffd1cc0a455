"""Settings of the trainer: a complete Megatron command line and what is known of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from slime_convert.layer_pattern import read_pattern
from slime_core.config.flags import Flag, derived
from slime_core.config.table import flags_from_table

from slime_megatron.flags.effects import REFUSED, REFUSED_VALUES, WHAT_HAPPENS
from slime_megatron.flags.ranges import RANGES

if TYPE_CHECKING:
    from slime_core.schedule.layout import ParallelLayout

OWNER = "megatron"

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

MEGATRON_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        # What post-training wants: small constant steps, state spread over ranks.
        "lr": 1e-6,
        "lr_decay_style": "constant",
        "clip_grad": 1.0,
        "use_distributed_optimizer": True,
        "tokenizer_type": "NullTokenizer",
        **RANK_DEFAULTS,
    }
)
"""Megatron destinations whose default slime changes."""


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

    def changed(self, values: Mapping[str, Any]) -> "MegatronConfig":
        """The same with other values of some destinations."""
        values = {**self.values, **values}
        return replace(self, values=values, argv=command_line(values, megatron_flags()))

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
    """Every flag of Megatron's parser, from the generated table, with the numbers it may have."""
    text = Path(__file__).with_name("flags.json").read_text(encoding="utf-8")
    return tuple(
        replace(flag, spelling={**flag.spelling, **RANGES[flag.dest]})
        if flag.dest in RANGES
        else flag
        for flag in flags_from_table(text, OWNER)
    )


def refusal(flag: Flag, value: Any) -> str | None:
    """Why a run must not set this, and what to do; None where it may, or says what is so anyway."""
    why = REFUSED.get(flag.dest)
    if why is None or same(value, WHAT_HAPPENS.get(flag.dest, flag.default)):
        return REFUSED_VALUES.get(flag.dest, {}).get(value)
    return why


def spelling(dest: str) -> str:
    """The flag of a destination."""
    return next(flag.names[0] for flag in megatron_flags() if flag.dest == dest)


def shown(dest: str, value: Any) -> str:
    """A destination's value as a command line gives it."""
    for flag in megatron_flags():
        if flag.dest == dest and flag.arity == "none":
            if same(flag.const, value):
                return flag.names[0]
        elif flag.dest == dest:
            words = value if isinstance(value, list | tuple) else (value,)
            return " ".join((flag.names[0], *(str(word) for word in words)))
    return f"{spelling(dest)} {value}"


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
