"""The architecture keys of published config.json files, by the name of their preset.

A checkpoint's own config.json always decides; this table is for command lines written the upstream
way, and for tests at real shapes.
"""

from collections.abc import Mapping
from typing import Any

from slime_convert.rules import HfConfig


def _dense(
    model_type: str, layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, **keys: Any
) -> HfConfig:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **keys,
    }


def _qwen2(
    layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, *, tied: bool, eps: float = 1e-6
) -> HfConfig:
    return _dense(
        "qwen2",
        layers,
        hidden,
        ffn,
        heads,
        kv_heads,
        rms_norm_eps=eps,
        rope_theta=1_000_000,
        tie_word_embeddings=tied,
        vocab_size=151936 if hidden < 3584 else 152064,
        max_position_embeddings=32768,
    )


def _qwen3(
    layers: int, hidden: int, ffn: int, heads: int, *, tied: bool, theta: int = 1_000_000
) -> HfConfig:
    return _dense(
        "qwen3",
        layers,
        hidden,
        ffn,
        heads,
        8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=theta,
        tie_word_embeddings=tied,
        vocab_size=151936,
        max_position_embeddings=40960,
    )


def _llama(
    layers: int, hidden: int, ffn: int, heads: int, *, tied: bool = False, factor: float | None
) -> HfConfig:
    """Llama 3; ``factor`` stretches its rotary embeddings from 3.1 on."""
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return _dense(
        "llama",
        layers,
        hidden,
        ffn,
        heads,
        8,
        head_dim=hidden // heads,
        rms_norm_eps=1e-5,
        rope_theta=500_000,
        tie_word_embeddings=tied,
        vocab_size=128256,
        max_position_embeddings=131072 if factor else 8192,
        **({"rope_scaling": scaling} if factor else {}),
    )


PRESETS: Mapping[str, HfConfig] = {
    "qwen2.5-0.5B": _qwen2(24, 896, 4864, 14, 2, tied=True),
    "qwen2.5-1.5B": _qwen2(28, 1536, 8960, 12, 2, tied=True),
    "qwen2.5-3B": _qwen2(36, 2048, 11008, 16, 2, tied=True),
    "qwen2.5-7B": _qwen2(28, 3584, 18944, 28, 4, tied=False),
    "qwen2.5-14B": _qwen2(48, 5120, 13824, 40, 8, tied=False),
    "qwen2.5-32B": _qwen2(64, 5120, 27648, 40, 8, tied=False, eps=1e-5),
    "qwen2.5-72B": _qwen2(80, 8192, 29568, 64, 8, tied=False),
    "qwen3-0.6B": _qwen3(28, 1024, 3072, 16, tied=True),
    "qwen3-1.7B": _qwen3(28, 2048, 6144, 16, tied=True),
    "qwen3-4B": _qwen3(36, 2560, 9728, 32, tied=True),
    "qwen3-4B-Instruct-2507": _qwen3(36, 2560, 9728, 32, tied=True, theta=5_000_000),
    "qwen3-8B": _qwen3(36, 4096, 12288, 32, tied=False),
    "qwen3-14B": _qwen3(40, 5120, 17408, 40, tied=False),
    "qwen3-32B": _qwen3(64, 5120, 25600, 64, tied=False),
    "llama3-8B": _llama(32, 4096, 14336, 32, factor=None),
    "llama3-70B": _llama(80, 8192, 28672, 64, factor=None),
    "llama3.1-8B-Instruct": _llama(32, 4096, 14336, 32, factor=8.0),
    "llama3.1-70B-Instruct": _llama(80, 8192, 28672, 64, factor=8.0),
    "llama3.2-1B-Instruct": _llama(16, 2048, 8192, 32, tied=True, factor=32.0),
    "llama3.2-3B-Instruct": _llama(28, 3072, 8192, 24, tied=True, factor=32.0),
}
"""By the names of upstream's scripts; its values are in the tests."""
