"""Llama 3, 3.1, 3.2 and 3.3, dense: grouped-query attention, rotary embeddings maybe scaled."""

from typing import Any

from slime_core.errors import CheckpointError

from slime_convert.blocks import dense
from slime_convert.family import Family
from slime_convert.hf_config import number, rope
from slime_convert.rules import HfConfig

LLAMA3_SCALING = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What Megatron's --use-rope-scaling has built in; only the factor is an argument."""


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments."""
    return dense.dense_arguments(config) | scaling(config)


def scaling(config: HfConfig) -> dict[str, Any]:
    """Return the arguments of the rotary embeddings' scaling, none for Llama 3."""
    rotary = rope(config)
    if rotary.kind != "llama3":
        dense.refuse_scaled_rope(config)
        return {}
    other = {
        key: value for key, value in rotary.scaling.items() if value != LLAMA3_SCALING.get(key)
    }
    factor = other.pop("factor", None)
    if factor is None or other:
        raise CheckpointError(
            f"config.json scales rotary embeddings by {dict(rotary.scaling)}: a factor is needed, "
            f"and beside it only {LLAMA3_SCALING} can be trained with"
        )
    return {
        "use_rope_scaling": True,
        "rope_scaling_factor": float(number("rope_scaling.factor", factor)),
    }


FAMILY = Family(
    model_type="llama",
    title="Llama 3, 3.1, 3.2 and 3.3 dense, 1B to 70B",
    rules=(
        *dense.embedding(),
        *dense.layer_norms(),
        *dense.attention(),
        *dense.gated_mlp(),
        *dense.head(),
    ),
    arguments=arguments,
    dims=dense.dense_dims,
    counts=dense.dense_counts,
    # Llama 2 era files store the rotary frequencies; tied ones may repeat the embedding.
    ignored=("lm_head.weight", "model.layers.*.self_attn.rotary_emb.inv_freq"),
)
