"""Qwen2 and Qwen2.5, dense: grouped-query attention with biases on query, key and value."""

from typing import Any

from slime_convert import blocks
from slime_convert.family import Family
from slime_convert.rules import HfConfig, always


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments."""
    blocks.refuse_scaled_rope(config)
    return blocks.dense_arguments(config, qkv_bias=True)


FAMILY = Family(
    model_type="qwen2",
    title="Qwen2 and Qwen2.5 dense, 0.5B to 72B",
    rules=(
        *blocks.embedding(),
        *blocks.layer_norms(),
        *blocks.attention(qkv_bias=always),
        *blocks.gated_mlp(),
        *blocks.head(),
    ),
    arguments=arguments,
    dims=blocks.dense_dims,
    counts=blocks.dense_counts,
    ignored=("lm_head.weight",),
)
