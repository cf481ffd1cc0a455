"""A small command line and the model it names, for rules that look at neither."""

from typing import Any

BASE = "--hf-checkpoint /models/tiny --prompt-data p.jsonl --num-rollout 3 --rollout-batch-size 4"
ARCHITECTURE: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "group_query_attention": True,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
    "swiglu": True,
    "add_bias_linear": False,
    "untie_embeddings_and_output_weights": True,
}
"""What config.json says, in Megatron's words."""
