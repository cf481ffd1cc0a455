"""``config.json`` of a Qwen3 of any size."""

from typing import Any


def qwen3_config(
    hidden: int,
    layers: int,
    heads: int,
    ffn: int,
    *,
    key_value_heads: int = 8,
    head_dim: int = 128,
    vocab: int = 151_936,
) -> dict[str, Any]:
    """With tied embeddings; unless said otherwise, published heads and vocabulary."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_dim,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 40_960,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
    }
