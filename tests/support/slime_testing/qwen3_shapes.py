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


def with_experts(config: dict[str, Any], experts: int, of_a_token: int, ffn: int) -> dict[str, Any]:
    """``config`` with experts in the place of every layer's MLP, and an output layer of its own."""
    return config | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": experts,
        "num_experts_per_tok": of_a_token,
        "moe_intermediate_size": ffn,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
    }
