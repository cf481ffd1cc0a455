"""Qwen3, dense: grouped-query attention with a norm per query and key head, tied or untied."""

from typing import Any

from slime_convert import blocks
from slime_convert.family import Family
from slime_convert.hf_config import require_sizes
from slime_convert.rules import HfConfig, always


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments. ``head_dim`` is required: its default differs by engine."""
    require_sizes(config, "head_dim")
    blocks.refuse_scaled_rope(config)
    return blocks.dense_arguments(config) | {"qk_layernorm": True}


FAMILY = Family(
    model_type="qwen3",
    title="Qwen3 dense, 0.6B to 32B",
    rules=(
        *blocks.embedding(),
        *blocks.layer_norms(),
        *blocks.attention(qk_norm=always),
        *blocks.gated_mlp(),
        *blocks.head(),
    ),
    arguments=arguments,
    dims=blocks.dense_dims,
    counts=blocks.dense_counts,
    # Some published tied checkpoints carry a copy of the embedding under the head's name.
    ignored=("lm_head.weight",),
)
