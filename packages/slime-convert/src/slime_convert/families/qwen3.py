"""Qwen3, dense: grouped-query attention with a norm per query and key head, tied or untied."""

from typing import Any

from slime_convert.blocks import dense
from slime_convert.family import Family
from slime_convert.hf_config import require_sizes
from slime_convert.rules import HfConfig, always


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments. ``head_dim`` is required: its default differs by engine."""
    require_sizes(config, "head_dim")
    dense.refuse_scaled_rope(config)
    return dense.dense_arguments(config) | {"qk_layernorm": True}


FAMILY = Family(
    model_type="qwen3",
    title="Qwen3 dense, 0.6B to 32B",
    rules=(
        *dense.embedding(),
        *dense.layer_norms(),
        *dense.attention(qk_norm=always),
        *dense.gated_mlp(),
        *dense.head(),
    ),
    arguments=arguments,
    dims=dense.dense_dims,
    counts=dense.dense_counts,
    # Some published tied checkpoints carry a copy of the embedding under the head's name.
    ignored=("lm_head.weight",),
)
