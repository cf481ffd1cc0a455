"""GLM-4: norms before and after attention and MLP, half of each head rotated, gate and up fused."""

from typing import Any

from slime_convert.blocks import dense
from slime_convert.family import Family
from slime_convert.hf_config import require_sizes
from slime_convert.rules import HfConfig, Index, Rule, Split, hf


def has_qkv_bias(config: HfConfig, _index: Index) -> bool:
    """Return whether query, key and value have biases: those of the 9B models do."""
    return bool(config.get("attention_bias"))


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments. Neighbouring numbers of a head are rotated together.

    ``head_dim`` is required: transformers has a default of its own.
    """
    require_sizes(config, "head_dim")
    dense.refuse_scaled_rope(config)
    return dense.dense_arguments(config, qkv_bias=has_qkv_bias(config, {})) | {
        "rotary_interleaved": True,
        "rotary_percent": dense.rotary_percent(config),
    }


def fused_mlp() -> tuple[Rule, ...]:
    """Rules of a SwiGLU MLP whose gate and up projections are one tensor, gate above up."""
    ours, theirs = f"{dense.MEGATRON_LAYER}.mlp", f"{dense.HF_LAYER}.mlp"
    both = hf(f"{theirs}.gate_up_proj.weight", "gate_up", "hidden")
    down = hf(f"{theirs}.down_proj.weight", "hidden", "ffn")
    return (
        Rule(f"{ours}.linear_fc1.weight", (both,), split=Split.GATED),
        Rule(f"{ours}.linear_fc2.weight", (down,), split=Split.ROW),
    )


def post_norms() -> tuple[Rule, ...]:
    """Rules of the norms on what attention and MLP give, before it is added."""
    names = {"self_attention": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm"}
    return tuple(
        Rule(
            f"{dense.MEGATRON_LAYER}.{ours}.post_norm.weight",
            (hf(f"{dense.HF_LAYER}.{theirs}.weight", "hidden"),),
        )
        for ours, theirs in names.items()
    )


def dims(config: HfConfig) -> dict[str, int]:
    """Return the sizes that the rules name."""
    return dense.dense_dims(config) | {"gate_up": 2 * config["intermediate_size"]}


FAMILY = Family(
    model_type="glm4",
    title="GLM-4-0414 and GLM-Z1, dense, 9B and 32B",
    rules=(
        *dense.embedding(),
        *dense.layer_norms(),
        *dense.attention(qkv_bias=has_qkv_bias),
        *fused_mlp(),
        *post_norms(),
        *dense.head(),
    ),
    arguments=arguments,
    dims=dims,
    counts=dense.dense_counts,
    ignored=("lm_head.weight", "model.layers.*.self_attn.rotary_emb.inv_freq"),
    post_norms=True,
)
