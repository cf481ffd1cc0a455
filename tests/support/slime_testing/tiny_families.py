"""A tiny random checkpoint of every family, as transformers builds and saves it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_train.quickstart import model

from slime_testing.tiny import qwen3_config

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
_DIFFERENCES: Mapping[str, dict[str, Any]] = {
    "qwen3_moe": _EXPERTS
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}
"""What a family's config.json says besides, or differently from, that of a Qwen3."""


def family_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """Return config.json of a tiny model, in the spelling of the published checkpoints.

    Two layers, of families with experts the last ones sparse; 100 tokens. ``changes`` replace or
    add keys; None removes one.
    """
    values = qwen3_config() | _DIFFERENCES.get(model_type, {})
    values |= {"model_type": model_type, **changes}
    return {key: value for key, value in values.items() if value is not None}


def make_family(directory: Path | str, model_type: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write a random checkpoint, built and saved by transformers, and return its directory.

    Norms are drawn from [0.5, 1.5] and biases from [-0.5, 0.5], so that two of them swapped are
    seen.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = family_config(model_type, **changes)
    (directory / "config.json").write_text(json.dumps(config))
    built = random_model(directory, seed=seed)
    built.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    model.write_tokenizer(directory)
    return directory


def random_model(directory: Path, *, seed: int) -> Any:
    """Transformers' model of ``directory``/config.json with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    built = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
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
