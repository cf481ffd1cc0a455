"""Small random Qwen3 checkpoints, in the files that a published model has."""

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT, IM_START, IM_END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, UNKNOWN)
CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
VOCAB_SIZE = len(SPECIAL_TOKENS) + len(CHARACTERS)
"""Without additional words: 100."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_qwen3(
    directory: Path,
    config: Mapping[str, Any],
    *,
    seed: int,
    init_std: float,
    norm_spread: float = 0.0,
    words: Sequence[str] = (),
) -> Path:
    """Write a checkpoint that transformers, SGLang and slime load; return its directory.

    ``words`` are strings that the tokenizer keeps whole, beside one token for each character of
    printable ASCII. For ``init_std`` and ``norm_spread`` see ``random_weights``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config)
    ends = [SPECIAL_TOKENS.index(IM_END), SPECIAL_TOKENS.index(END_OF_TEXT)]
    tokens = {"bos_token_id": None, "eos_token_id": ends, "pad_token_id": ends[-1]}
    _write_json(directory / "generation_config.json", tokens)
    write_tokenizer(directory, words)
    weights = random_weights(
        qwen3_shapes(config), seed=seed, init_std=init_std, norm_spread=norm_spread
    )
    dtype = getattr(torch, config["torch_dtype"])
    save_file(
        {name: weight.to(dtype) for name, weight in weights.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    return directory


def write_small(directory: Path, *, words: Sequence[str], seed: int) -> Path:
    """Write an untrained model that learns a task of few characters in minutes on a CPU.

    ``words`` are kept whole by its tokenizer: the less there is to spell, the sooner it learns.
    """
    config = qwen3_config(
        hidden_size=128,
        intermediate_size=512,
        tie_word_embeddings=True,
        vocab_size=VOCAB_SIZE + len(words),
    )
    return write_qwen3(directory, config, seed=seed, init_std=0.05, words=words)


def qwen3_config(**changes: Any) -> dict[str, Any]:
    """The contents of config.json, in the spelling of the published checkpoints."""
    layers, hidden = changes.get("num_hidden_layers", 2), changes.get("hidden_size", 64)
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
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB_SIZE,
    } | changes


def qwen3_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, in the order of its layers."""
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
    shapes: Mapping[str, tuple[int, ...]], *, seed: int, init_std: float, norm_spread: float
) -> dict[str, torch.Tensor]:
    """Matrices from N(0, init_std^2), norm vectors from U(1 - norm_spread, 1 + norm_spread)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 1 + norm_spread * (2 * torch.rand(shape, generator=generator) - 1)
        if len(shape) == 1
        else init_std * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def write_tokenizer(directory: Path, words: Sequence[str] = ()) -> None:
    """Write tokenizer.json and tokenizer_config.json; ids are specials, characters, words."""
    vocab = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
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


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
