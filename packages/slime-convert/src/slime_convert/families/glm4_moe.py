"""GLM-4.5, 4.6 and 4.7: grouped-query attention, dense layers first, experts scored by sigmoid.

The layer after the last one predicts a further token (``num_nextn_predict_layers``). It is not
trained, and carried over unchanged into checkpoints that are written.
"""

from typing import Any

from slime_convert.blocks import dense, moe
from slime_convert.families.glm4 import has_qkv_bias
from slime_convert.family import Family
from slime_convert.hf_config import require_sizes
from slime_convert.rules import HfConfig, Index


def has_qk_norm(config: HfConfig, _index: Index) -> bool:
    """Return whether query and key heads are normalised: not in GLM-4.5-Air."""
    return bool(config.get("use_qk_norm"))


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments. ``head_dim`` is required, as in GLM-4."""
    require_sizes(config, "head_dim")
    dense.refuse_scaled_rope(config)
    return (
        dense.dense_arguments(config, qkv_bias=has_qkv_bias(config, {}))
        | {
            "qk_layernorm": has_qk_norm(config, {}),
            "rotary_percent": dense.rotary_percent(config),
        }
        | moe.sigmoid_arguments(config)
    )


def dims(config: HfConfig) -> dict[str, int]:
    """Return the sizes that the rules name."""
    return dense.dense_dims(config) | moe.sigmoid_dims(config)


FAMILY = Family(
    model_type="glm4_moe",
    title="GLM-4.5, 4.5-Air, 4.6 and 4.7",
    rules=(
        *dense.embedding(),
        *dense.layer_norms(),
        *dense.attention(qkv_bias=has_qkv_bias, qk_norm=has_qk_norm),
        *moe.sigmoid_rules(),
        *dense.head(),
    ),
    arguments=arguments,
    dims=dims,
    counts=moe.sigmoid_counts,
    ignored=("lm_head.weight",),
    carried=("model.layers.{i}.*",),
)
