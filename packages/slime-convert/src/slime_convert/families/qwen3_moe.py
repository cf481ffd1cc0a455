"""Qwen3 with experts: the attention of Qwen3, softmax router, no shared experts."""

from typing import Any

from slime_core.errors import CheckpointError

from slime_convert.blocks import dense, moe
from slime_convert.family import Family
from slime_convert.hf_config import require_sizes
from slime_convert.rules import HfConfig, Index, always


def num_experts(config: HfConfig) -> int:
    """Return the number of experts: ``num_experts``, or ``num_local_experts`` in newer files."""
    names = ("num_experts", "num_local_experts")
    found: set[int] = {config[name] for name in names if config.get(name) is not None}
    if len(found) != 1:
        told = f"gives {sorted(found)}" if found else "gives neither"
        raise CheckpointError(
            f"config.json must say how many experts a layer has, as num_experts or as "
            f"num_local_experts, and {told}"
        )
    return found.pop()


def has_experts(config: HfConfig, index: Index) -> bool:
    """Return whether a layer has experts: every ``decoder_sparse_step``-th not listed as dense."""
    layer: int = index["i"]
    step: int = config.get("decoder_sparse_step") or 1
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % step == 0


def is_dense(config: HfConfig, index: Index) -> bool:
    """Return whether a layer has one MLP."""
    return not has_experts(config, index)


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments."""
    require_sizes(config, "head_dim", "num_hidden_layers")
    dense.refuse_scaled_rope(config)
    pattern = [has_experts(config, {"i": i}) for i in range(config["num_hidden_layers"])]
    return (
        dense.dense_arguments(config)
        | {"qk_layernorm": True}
        | moe.softmax_arguments(config, num_experts(config), pattern)
    )


def dims(config: HfConfig) -> dict[str, int]:
    """Return the sizes that the rules name."""
    return dense.dense_dims(config) | {
        "experts": num_experts(config),
        "expert_ffn": config["moe_intermediate_size"],
    }


def counts(config: HfConfig) -> dict[str, int]:
    """Return the number of layers and of experts."""
    return dense.dense_counts(config) | {"e": num_experts(config)}


FAMILY = Family(
    model_type="qwen3_moe",
    title="Qwen3 with experts, 30B-A3B and 235B-A22B",
    rules=(
        *dense.embedding(),
        *dense.layer_norms(),
        *dense.attention(qk_norm=always),
        *dense.gated_mlp(when=is_dense),
        *moe.router(when=has_experts),
        *moe.routed_experts(when=has_experts),
        *dense.head(),
    ),
    arguments=arguments,
    dims=dims,
    counts=counts,
    ignored=("lm_head.weight",),
)
