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


def _qwen3_moe(
    layers: int, hidden: int, ffn: int, heads: int, expert_ffn: int, *, theta: int = 1_000_000
) -> HfConfig:
    return _dense(
        "qwen3_moe",
        layers,
        hidden,
        ffn,
        heads,
        4,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=theta,
        tie_word_embeddings=False,
        vocab_size=151936,
        max_position_embeddings=40960,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=expert_ffn,
        norm_topk_prob=True,
    )


def _glm4(layers: int, hidden: int, ffn: int, heads: int, *, bias: bool) -> HfConfig:
    return _dense(
        "glm4",
        layers,
        hidden,
        ffn,
        heads,
        2,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=10_000,
        partial_rotary_factor=0.5,
        attention_bias=bias,
        tie_word_embeddings=False,
        vocab_size=151552,
        max_position_embeddings=32768,
    )


def _glm4_moe(
    layers: int, hidden: int, ffn: int, *, experts: int, expert_ffn: int, dense: int, **keys: Any
) -> HfConfig:
    return _dense(
        "glm4_moe",
        layers,
        hidden,
        ffn,
        96,
        8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=1_000_000,
        partial_rotary_factor=0.5,
        attention_bias=True,
        tie_word_embeddings=False,
        vocab_size=151552,
        max_position_embeddings=131072,
        n_routed_experts=experts,
        num_experts_per_tok=8,
        moe_intermediate_size=expert_ffn,
        n_shared_experts=1,
        first_k_dense_replace=dense,
        norm_topk_prob=True,
        **keys,
    )


def _latent(
    model_type: str, layers: int, hidden: int, ffn: int, heads: int, **keys: Any
) -> HfConfig:
    """Multi-latent attention with the ranks of DeepSeek-V3, unless given."""
    shared = {
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    }
    return _dense(model_type, layers, hidden, ffn, heads, heads, **(shared | keys))


def _yarn(factor: float, *, mscale: float = 1.0, length: int = 4096) -> dict[str, Any]:
    return {
        "type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": length,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": mscale,
        "mscale_all_dim": mscale,
    }


def _deepseek(layers: int) -> HfConfig:
    return _latent(
        "deepseek_v3",
        layers,
        7168,
        18432,
        128,
        rms_norm_eps=1e-6,
        rope_theta=10_000,
        rope_scaling=_yarn(40),
        vocab_size=129280,
        max_position_embeddings=163840,
        n_routed_experts=256,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
        routed_scaling_factor=2.5,
        n_group=8,
        topk_group=4,
    )


def _kimi_k2(factor: float, eps: float) -> HfConfig:
    """K2 keeps beta_fast at 1."""
    return _latent(
        "kimi_k2",
        61,
        7168,
        18432,
        64,
        rms_norm_eps=eps,
        rope_theta=50_000,
        rope_scaling=_yarn(factor) | {"beta_fast": 1},
        vocab_size=163840,
        max_position_embeddings=4096 * int(factor),
        n_routed_experts=384,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        first_k_dense_replace=1,
        routed_scaling_factor=2.827,
        n_group=1,
        topk_group=1,
    )


_MOONLIGHT = _latent(
    "deepseek_v3",
    27,
    2048,
    11264,
    16,
    q_lora_rank=None,
    rms_norm_eps=1e-5,
    rope_theta=50_000,
    vocab_size=163840,
    max_position_embeddings=8192,
    n_routed_experts=64,
    num_experts_per_tok=6,
    moe_intermediate_size=1408,
    n_shared_experts=2,
    first_k_dense_replace=1,
    routed_scaling_factor=2.446,
    n_group=1,
    topk_group=1,
)

_GLM_FLASH = _latent(
    "glm4_moe_lite",
    47,
    2048,
    10240,
    20,
    q_lora_rank=768,
    qk_nope_head_dim=192,
    v_head_dim=256,
    rms_norm_eps=1e-5,
    rope_theta=1_000_000,
    vocab_size=154880,
    max_position_embeddings=202752,
    n_routed_experts=64,
    num_experts_per_tok=4,
    moe_intermediate_size=1536,
    first_k_dense_replace=1,
    routed_scaling_factor=1.8,
    n_group=1,
    topk_group=1,
)

_MIMO = _dense(
    "mimo",
    36,
    4096,
    11008,
    32,
    8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=640_000,
    tie_word_embeddings=False,
    vocab_size=151680,
    max_position_embeddings=32768,
)

_GLM_FULL = _glm4_moe(
    92,
    5120,
    12288,
    experts=160,
    expert_ffn=1536,
    dense=3,
    use_qk_norm=True,
    routed_scaling_factor=2.5,
)
_GLM_AIR = _glm4_moe(
    46,
    4096,
    10944,
    experts=128,
    expert_ffn=1408,
    dense=1,
    use_qk_norm=False,
    routed_scaling_factor=1.0,
)

# Numbers in a row: layers, hidden size, size of the MLP, query heads; then key-value heads of qwen2
# and the size of one expert of qwen3_moe.
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
    "qwen3-30B-A3B": _qwen3_moe(48, 2048, 6144, 32, 768),
    "qwen3-30B-A3B-Instruct-2507": _qwen3_moe(48, 2048, 6144, 32, 768, theta=10_000_000),
    "qwen3-235B-A22B": _qwen3_moe(94, 4096, 12288, 64, 1536),
    "qwen3-235B-A22B-Instruct-2507": _qwen3_moe(94, 4096, 12288, 64, 1536, theta=5_000_000),
    "glm4-9B": _glm4(40, 4096, 13696, 32, bias=True),
    "glm4-32B": _glm4(61, 6144, 23040, 48, bias=False),
    "glm-z1-9B": _glm4(40, 4096, 13696, 32, bias=True),
    "glm4.5-106B-A12B": _GLM_AIR,
    "glm4.5-355B-A32B": _GLM_FULL,
    "glm4.7-30B-A3B": _GLM_FLASH,
    "deepseek-v3": _deepseek(61),
    "deepseek-v3-20layer": _deepseek(20),
    "deepseek-v3-5layer": _deepseek(5),
    "kimi-k2": _kimi_k2(32.0, 1e-6),
    "kimi-k2-thinking": _kimi_k2(64.0, 1e-5),
    "moonlight": _MOONLIGHT,
    "mimo-7B-rl": _MIMO,
    "llama3-8B": _llama(32, 4096, 14336, 32, factor=None),
    "llama3-70B": _llama(80, 8192, 28672, 64, factor=None),
    "llama3.1-8B-Instruct": _llama(32, 4096, 14336, 32, factor=8.0),
    "llama3.1-70B-Instruct": _llama(80, 8192, 28672, 64, factor=8.0),
    "llama3.2-1B-Instruct": _llama(16, 2048, 8192, 32, tied=True, factor=32.0),
    "llama3.2-3B-Instruct": _llama(28, 3072, 8192, 24, tied=True, factor=32.0),
}
"""By the names of upstream's scripts; its values are in the tests."""
