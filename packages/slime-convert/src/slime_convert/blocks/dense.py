"""Rules and arguments of dense layers, by module of the network.

Megatron names are those of the local layer specification, which keeps norms apart from the linear
layers behind them (``input_layernorm``, ``pre_mlp_layernorm``).
"""

from typing import Any

from slime_core.errors import CheckpointError

from slime_convert.hf_config import number, refuse, require, require_sizes, rope
from slime_convert.rules import (
    Condition,
    HfConfig,
    Index,
    Rule,
    Split,
    Transform,
    always,
    hf,
    never,
)

MEGATRON_LAYER = "decoder.layers.{i}"
HF_LAYER = "model.layers.{i}"
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)


def is_tied(config: HfConfig, _index: Index) -> bool:
    """Return whether the output layer is the embedding."""
    return bool(config.get("tie_word_embeddings", False))


def is_untied(config: HfConfig, index: Index) -> bool:
    """Return whether the output layer has weights of its own."""
    return not is_tied(config, index)


def embedding() -> tuple[Rule, ...]:
    """Rules of the token embedding."""
    table = hf("model.embed_tokens.weight", "vocab", "hidden")
    return (Rule("embedding.word_embeddings.weight", (table,), split=Split.VOCAB),)


def head() -> tuple[Rule, ...]:
    """Rules of the final norm and the output layer.

    A tied model has an output layer in Megatron only on a last pipeline stage without the
    embedding: a copy of it, read from the same tensor and never written.
    """
    norm = hf("model.norm.weight", "hidden")
    own = hf("lm_head.weight", "vocab", "hidden")
    shared = hf("model.embed_tokens.weight", "vocab", "hidden")
    output = "output_layer.weight"
    return (
        Rule("decoder.final_layernorm.weight", (norm,)),
        Rule(output, (own,), split=Split.VOCAB, when=is_untied),
        Rule(output, (shared,), split=Split.VOCAB, when=is_tied, alias=True),
    )


def layer_norms() -> tuple[Rule, ...]:
    """Rules of the norms before attention and before the MLP."""
    return (
        Rule(
            f"{MEGATRON_LAYER}.input_layernorm.weight",
            (hf(f"{HF_LAYER}.input_layernorm.weight", "hidden"),),
        ),
        Rule(
            f"{MEGATRON_LAYER}.pre_mlp_layernorm.weight",
            (hf(f"{HF_LAYER}.post_attention_layernorm.weight", "hidden"),),
        ),
    )


def attention(*, qkv_bias: Condition = never, qk_norm: Condition = never) -> tuple[Rule, ...]:
    """Rules of grouped-query attention; ``qk_norm``: a norm per head on query and key."""
    ours, theirs = f"{MEGATRON_LAYER}.self_attention", f"{HF_LAYER}.self_attn"
    rows = {"q": "q", "k": "kv", "v": "kv"}
    weights = tuple(hf(f"{theirs}.{x}_proj.weight", dim, "hidden") for x, dim in rows.items())
    biases = tuple(hf(f"{theirs}.{x}_proj.bias", dim) for x, dim in rows.items())
    out = hf(f"{theirs}.o_proj.weight", "hidden", "q")
    norms = {x: hf(f"{theirs}.{x}_norm.weight", "head") for x in "qk"}
    return (
        Rule(f"{ours}.linear_qkv.weight", weights, Transform.QKV, Split.COLUMN),
        Rule(f"{ours}.linear_proj.weight", (out,), split=Split.ROW),
        Rule(f"{ours}.linear_qkv.bias", biases, Transform.QKV, Split.COLUMN, qkv_bias),
        *(Rule(f"{ours}.{x}_layernorm.weight", (norms[x],), when=qk_norm) for x in norms),
    )


def gated_mlp(
    megatron: str = f"{MEGATRON_LAYER}.mlp",
    theirs: str = f"{HF_LAYER}.mlp",
    *,
    ffn: str = "ffn",
    when: Condition = always,
) -> tuple[Rule, ...]:
    """Rules of a SwiGLU MLP, wherever it stands.

    An MLP of every layer, of some (``when``), of every expert (both names containing ``{e}``) or
    shared by all tokens: the same two rows under other names.
    """
    halves = tuple(hf(f"{theirs}.{x}_proj.weight", ffn, "hidden") for x in ("gate", "up"))
    down = hf(f"{theirs}.down_proj.weight", "hidden", ffn)
    return (
        Rule(f"{megatron}.linear_fc1.weight", halves, Transform.STACK, Split.GATED, when),
        Rule(f"{megatron}.linear_fc2.weight", (down,), split=Split.ROW, when=when),
    )


def head_dim(config: HfConfig) -> int:
    """Return the size of one attention head: ``head_dim``, or hidden size over heads."""
    given = config.get("head_dim")
    return int(given or config["hidden_size"] // config["num_attention_heads"])


def dense_dims(config: HfConfig) -> dict[str, int]:
    """Return the sizes that the rules of this module name."""
    head = head_dim(config)
    return {
        "vocab": config["vocab_size"],
        "hidden": config["hidden_size"],
        "ffn": config["intermediate_size"],
        "head": head,
        "q": config["num_attention_heads"] * head,
        "kv": config["num_key_value_heads"] * head,
        "groups": config["num_key_value_heads"],
    }


def dense_counts(config: HfConfig) -> dict[str, int]:
    """Return the number of layers."""
    return {"i": config["num_hidden_layers"]}


def dense_arguments(config: HfConfig, *, qkv_bias: bool = False) -> dict[str, Any]:
    """Return the Megatron arguments of a pre-norm decoder: RMSNorm, SwiGLU, rotary, no biases.

    ``qkv_bias``: query, key and value have biases, and ``attention_bias`` may say so.
    """
    check_dense(config, qkv_bias=qkv_bias)
    return {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "group_query_attention": True,
        "num_query_groups": config["num_key_value_heads"],
        "kv_channels": head_dim(config),
        "qk_layernorm": False,
        "add_bias_linear": False,
        "add_qkv_bias": qkv_bias,
        "swiglu": True,
        "normalization": "RMSNorm",
        "layernorm_epsilon": float(number("rms_norm_eps", config["rms_norm_eps"])),
        "position_embedding_type": "rope",
        "rotary_base": rope(config).theta,
        "rotary_percent": 1.0,
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "untie_embeddings_and_output_weights": is_untied(config, {}),
    }


def check_dense(config: HfConfig, *, qkv_bias: bool = False) -> None:
    """Raise ``CheckpointError`` for a config.json that ``dense_arguments`` would misread."""
    require(config, *_SIZES, "rms_norm_eps")
    require_sizes(config, *_SIZES)
    _check_groups(config)
    unbuilt = "models with it cannot be trained yet"
    refuse(config, "hidden_act", allowed=("silu",), reason="only silu (SwiGLU) is implemented")
    biases = (True, False, None) if qkv_bias else (False, None)
    refuse(config, "attention_bias", allowed=biases, reason=unbuilt)
    refuse(config, "mlp_bias", allowed=(False, None), reason=unbuilt)
    refuse(config, "use_sliding_window", allowed=(False, None), reason=unbuilt)
    other = set(config.get("layer_types") or ()) - {"full_attention"}
    if other:
        raise CheckpointError(f"config.json says layer_types = {sorted(other)}: {unbuilt}")
    refuse(
        config,
        "quantization_config",
        allowed=(None,),
        reason="give the unquantized (bfloat16 or float32) checkpoint of the model, or make one: "
        "slime-convert cast --dtype bf16",
    )


def _check_groups(config: HfConfig) -> None:
    """Every key-value head serves equally many query heads."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % groups:
        raise CheckpointError(
            f"config.json says num_attention_heads = {heads} and num_key_value_heads = {groups}: "
            "the first must be a multiple of the second"
        )


def rotary_percent(config: HfConfig) -> float:
    """Return which part of each head is rotated (``partial_rotary_factor``); it must be given."""
    parameters: HfConfig = config.get("rope_parameters") or {}
    found = config.get("partial_rotary_factor")
    found = parameters.get("partial_rotary_factor") if found is None else found
    if found is None:
        raise CheckpointError("config.json gives no partial_rotary_factor")
    return float(number("partial_rotary_factor", found))


def refuse_scaled_rope(config: HfConfig) -> None:
    """Raise ``CheckpointError`` for rotary embeddings that are stretched for longer contexts."""
    kind = rope(config).kind
    if kind != "default":
        raise CheckpointError(
            f"config.json asks for rotary embeddings of type {kind!r}, which this model family "
            "is not trained with yet: remove rope_scaling to train without stretching"
        )
