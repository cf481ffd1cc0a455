"""Qwen2 and Qwen2.5, dense: grouped-query attention with biases on query, key and value."""

from typing import Any

from slime_convert.blocks import dense
from slime_convert.family import Family
from slime_convert.rules import HfConfig, always


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments."""
    dense.refuse_scaled_rope(config)
    return dense.dense_arguments(config, qkv_bias=True)


FAMILY = Family(
    model_type="qwen2",
    title="Qwen2 and Qwen2.5 dense, 0.5B to 72B",
    rules=(
        *dense.embedding(),
        *dense.layer_norms(),
        *dense.attention(qkv_bias=always),
        *dense.gated_mlp(),
        *dense.head(),
    ),
    arguments=arguments,
    dims=dense.dense_dims,
    counts=dense.dense_counts,
    ignored=("lm_head.weight",),
)
