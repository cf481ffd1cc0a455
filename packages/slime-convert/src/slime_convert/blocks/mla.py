"""Rules and arguments of multi-latent attention, shared by families built like DeepSeek-V3.

Queries, and keys with values, come from narrow latents; see
``slime_megatron.mcore.layers.latent_attention`` for the picture. Rotary embeddings turn
neighbouring pairs of the last rows of each query head and of the key part that all heads share: as
in the files, so nothing is permuted.
"""

from typing import Any

from slime_core.errors import CheckpointError

from slime_convert.blocks import dense
from slime_convert.blocks.dense import HF_LAYER, MEGATRON_LAYER
from slime_convert.hf_config import Rope, number, refuse, require_sizes, rope
from slime_convert.rules import HfConfig, Index, Rule, Split, always, hf


def has_query_latent(config: HfConfig, _index: Index) -> bool:
    """Return whether queries too come from a latent (not in Moonlight)."""
    return config.get("q_lora_rank") is not None


def has_no_query_latent(config: HfConfig, index: Index) -> bool:
    """Return whether queries are projected straight from the hidden state."""
    return not has_query_latent(config, index)


def attention() -> tuple[Rule, ...]:
    """Rules of multi-latent attention.

    SGLang joins the two down projections in one weight while loading, if both are there.
    """
    ours, theirs = f"{MEGATRON_LAYER}.self_attention", f"{HF_LAYER}.self_attn"
    latent, direct = has_query_latent, has_no_query_latent
    rows = (
        # Megatron, Hugging Face, dimensions, split, when
        ("linear_q_proj", "q_proj", ("q", "hidden"), Split.COLUMN, direct),
        ("q_layernorm", "q_a_layernorm", ("q_latent",), Split.REPLICATED, latent),
        ("linear_q_up_proj", "q_b_proj", ("q", "q_latent"), Split.COLUMN, latent),
        ("linear_q_down_proj", "q_a_proj", ("q_latent", "hidden"), Split.REPLICATED, latent),
        (
            "linear_kv_down_proj",
            "kv_a_proj_with_mqa",
            ("kv_down", "hidden"),
            Split.REPLICATED,
            always,
        ),
        ("kv_layernorm", "kv_a_layernorm", ("kv_latent",), Split.REPLICATED, always),
        ("linear_kv_up_proj", "kv_b_proj", ("kv_up", "kv_latent"), Split.COLUMN, always),
        ("linear_proj", "o_proj", ("hidden", "values"), Split.ROW, always),
    )
    return tuple(
        Rule(
            f"{ours}.{name}.weight",
            (hf(f"{theirs}.{tensor}.weight", *sizes),),
            split=split,
            when=when,
            with_next=name == "linear_q_down_proj",
        )
        for name, tensor, sizes, split, when in rows
    )


def dims(config: HfConfig) -> dict[str, int]:
    """Return the sizes that ``attention`` and the rules beside it name."""
    heads: int = config["num_attention_heads"]
    plain, turned, value = (
        config[name] for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    return dense.dense_dims(config) | {
        "q": heads * (plain + turned),
        "q_latent": config.get("q_lora_rank") or 0,
        "kv_latent": config["kv_lora_rank"],
        "kv_down": config["kv_lora_rank"] + turned,
        "kv_up": heads * (plain + value),
        "values": heads * value,
    }


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments of a decoder with multi-latent attention and dense MLPs."""
    require_sizes(config, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    if "q_lora_rank" not in config:
        raise CheckpointError(
            "config.json lacks q_lora_rank: null says that queries are not compressed"
        )
    given = dense.dense_arguments(config)
    heads: int = config["num_attention_heads"]
    refuse(config, "num_key_value_heads", allowed=(heads,), reason="it must be the query heads'")
    refuse(config, "rope_interleave", allowed=(True, None), reason="only True is implemented")
    refuse(config, "partial_rotary_factor", allowed=(1.0, None), reason="only 1 is implemented")
    query_latent = config.get("q_lora_rank")
    return (
        given
        | {
            "group_query_attention": False,
            "num_query_groups": heads,
            "kv_channels": config["qk_nope_head_dim"],  # not read; the default may not divide
            "multi_latent_attention": True,
            "qk_layernorm": True,
            "kv_lora_rank": config["kv_lora_rank"],
            "qk_head_dim": config["qk_nope_head_dim"],
            "qk_pos_emb_head_dim": config["qk_rope_head_dim"],
            "v_head_dim": config["v_head_dim"],
        }
        | ({"q_lora_rank": query_latent} if query_latent is not None else {})
        | rotary(rope(config))
    )


def rotary(given: Rope) -> dict[str, Any]:
    """Return the Megatron arguments of plain or yarn rotary embeddings.

    Source: YaRN, arXiv:2309.00071; with ``mscale`` (on cosines and sines, numerator) and
    ``mscale_all_dim`` (denominator, and squared on attention scores) of DeepSeek-V2.
    """
    rest = dict(given.scaling)
    if rest.pop("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError("config.json says partial_rotary_factor is not 1: not implemented")
    if given.kind == "default":
        return {"rope_type": "rope", "rotary_scaling_factor": 1.0}
    if given.kind != "yarn":
        raise CheckpointError(
            f"config.json asks for rotary embeddings of type {given.kind!r}; multi-latent "
            "attention is trained with 'default' and 'yarn'"
        )
    factor, length = (rest.pop(k, None) for k in ("factor", "original_max_position_embeddings"))
    fast, slow = rest.pop("beta_fast", None) or 32, rest.pop("beta_slow", None) or 1
    scale, scale_all = rest.pop("mscale", None), rest.pop("mscale_all_dim", None) or 0.0
    # With the second alone, transformers stretches what DeepSeek's own code does not.
    alone = scale_all if scale is None else scale != 1.0 and not scale_all
    unread = {k: v for k, v in rest.items() if v != {"truncate": True}.get(k)}
    if factor is None or length is None or unread or alone:
        raise CheckpointError(
            f"config.json gives yarn {dict(given.scaling)}: factor and "
            "original_max_position_embeddings are needed, mscale and mscale_all_dim together, and "
            "beside them only beta_fast and beta_slow are implemented"
        )
    return {
        "rope_type": "yarn",
        "rotary_scaling_factor": float(number("rope_scaling.factor", factor)),
        "mscale": float(number("rope_scaling.mscale", 1.0 if scale is None else scale)),
        "mscale_all_dim": float(number("rope_scaling.mscale_all_dim", scale_all)),
        "yarn_original_max_position_embeddings": int(
            number("rope_scaling.original_max_position_embeddings", length)
        ),
        "yarn_beta_fast": float(number("rope_scaling.beta_fast", fast)),
        "yarn_beta_slow": float(number("rope_scaling.beta_slow", slow)),
    }
