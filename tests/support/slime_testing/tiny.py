"""Tiny random checkpoints in the files a published model has, written without transformers."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT, IM_START, IM_END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, UNKNOWN)
CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
VOCAB_SIZE = len(SPECIAL_TOKENS) + len(CHARACTERS)
"""100: not a multiple of what Megatron pads to, so padding is always exercised."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_qwen3(
    directory: Path | str,
    *,
    tied: bool = False,
    layers: int = 2,
    hidden: int = 64,
    seed: int = 0,
    init_std: float = 0.1,
    **config: Any,
) -> Path:
    """Write a random Qwen3 with a character-level tokenizer and return its directory.

    ``config`` replaces or adds keys of config.json (``vocab_size``, ``num_key_value_heads``,
    ``head_dim``, ``torch_dtype="bfloat16"``, ...). Norm weights are drawn from [0.5, 1.5], so that
    two of them swapped are seen.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    values = qwen3_config(tied=tied, layers=layers, hidden=hidden) | config
    write_json(directory / "config.json", values)
    tokens = {"bos_token_id": None, "eos_token_id": [2, 0], "pad_token_id": 0}
    write_json(directory / "generation_config.json", tokens)
    write_tokenizer(directory)
    weights = random_weights(qwen3_shapes(values), values["torch_dtype"], seed, init_std)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def qwen3_config(*, tied: bool = False, layers: int = 2, hidden: int = 64) -> dict[str, Any]:
    """Return config.json in the spelling of the published checkpoints (``rope_theta``)."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
        "eos_token_id": SPECIAL_TOKENS.index(IM_END),
        "pad_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 2048,
        "max_window_layers": layers,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB_SIZE,
    }


def qwen3_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the checkpoint, in the order of its layers."""
    hidden, ffn, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_rows, kv_rows = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q_rows, hidden),
        "self_attn.k_proj": (kv_rows, hidden),
        "self_attn.v_proj": (kv_rows, hidden),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "self_attn.o_proj": (hidden, q_rows),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def random_weights(
    shapes: dict[str, tuple[int, ...]], dtype: str, seed: int, init_std: float
) -> dict[str, torch.Tensor]:
    """Return matrices from N(0, init_std^2) and norm vectors from U(0.5, 1.5)."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.rand(shape, generator=generator) + 0.5
        if len(shape) == 1
        else torch.randn(shape, generator=generator) * init_std
        for name, shape in shapes.items()
    }
    return {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}


def write_tokenizer(directory: Path) -> None:
    """Write a tokenizer with one token per character of printable ASCII and newline."""
    vocab = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "unk_token": UNKNOWN,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` the way checkpoints spell JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
