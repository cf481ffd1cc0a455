"""A tiny random checkpoint of every family, as transformers builds and saves it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_train.quickstart import model

from slime_testing.tiny import qwen3_config

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
_LATENT = _EXPERTS | {
    "num_key_value_heads": 4,
    "head_dim": None,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "rms_norm_eps": 1e-3,  # not that of the norms on latents
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 4,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
}
_BUILT_AS = {"kimi_k2": "deepseek_v3", "mimo": "qwen2"}
"""Families whose models transformers has under another ``model_type``."""
_DIFFERENCES: Mapping[str, dict[str, Any]] = {
    "qwen3_moe": _EXPERTS
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "glm4": {
        "architectures": ["Glm4ForCausalLM"],
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    },
    "glm4_moe": _EXPERTS
    | {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "use_qk_norm": True,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
        "num_nextn_predict_layers": 1,
    },
    "mimo": {
        "architectures": ["MiMoForCausalLM"],
        "attention_bias": True,
        "head_dim": 16,
        "num_nextn_predict_layers": 1,
    },
    "deepseek_v3": _LATENT | {"architectures": ["DeepseekV3ForCausalLM"], "q_lora_rank": 20},
    "kimi_k2": _LATENT | {"architectures": ["DeepseekV3ForCausalLM"], "q_lora_rank": 20},
    "glm4_moe_lite": _LATENT
    | {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "q_lora_rank": 20,
        "mlp_layer_types": ["dense", "sparse"],
        "first_k_dense_replace": None,
        "rope_scaling": None,
        "n_group": 1,
        "topk_group": 1,
    },
}
"""What a family's config.json says besides, or differently from, that of a Qwen3."""


def family_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """Return config.json of a tiny model, in the spelling of the published checkpoints.

    Two layers, of families with experts the last ones sparse; 100 tokens. ``changes`` replace or
    add keys; None removes one, but for ``q_lora_rank``, which may be null.
    """
    values = qwen3_config() | _DIFFERENCES.get(model_type, {})
    values |= {"model_type": model_type, **changes}
    return {k: v for k, v in values.items() if v is not None or k == "q_lora_rank"}


def make_family(directory: Path | str, model_type: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write a random checkpoint, built and saved by transformers, and return its directory.

    Norms are drawn from [0.5, 1.5] and biases from [-0.5, 0.5], so that two of them swapped are
    seen.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = family_config(model_type, **changes)
    text = json.dumps(config, indent=2)
    (directory / "config.json").write_text(text)
    built = random_model(directory, seed=seed)
    built.save_pretrained(directory)
    (directory / "config.json").write_text(text)
    model.write_tokenizer(directory)
    return directory


def known_config(directory: Path) -> Any:
    """Transformers' configuration of ``directory``, under a ``model_type`` that it has."""
    from transformers import AutoConfig

    values = json.loads((directory / "config.json").read_text())
    kind = values.pop("model_type")
    return AutoConfig.for_model(_BUILT_AS.get(kind, kind), **values)


def random_model(directory: Path, *, seed: int) -> Any:
    """Transformers' model of ``directory``/config.json with random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    built = AutoModelForCausalLM.from_config(known_config(directory), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*built.named_parameters(), *built.named_buffers()]:
            if name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("bias"):
                tensor.uniform_(-0.5, 0.5, generator=generator)
            elif tensor.ndim > 1:
                tensor.normal_(0.0, 0.1, generator=generator)
    return built
