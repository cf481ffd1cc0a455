"""Tiny random checkpoints in the files a published model has, written without transformers."""

from pathlib import Path
from typing import Any

from slime_train.quickstart import model

qwen3_shapes = model.qwen3_shapes


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
    two of them swapped are seen. The vocabulary of 100 is no multiple of what Megatron pads to.
    """
    values = qwen3_config(tied=tied, layers=layers, hidden=hidden) | config
    return model.write_qwen3(Path(directory), values, seed=seed, init_std=init_std, norm_spread=0.5)


def qwen3_config(*, tied: bool = False, layers: int = 2, hidden: int = 64) -> dict[str, Any]:
    """Return config.json in the spelling of the published checkpoints (``rope_theta``)."""
    return model.qwen3_config(
        tie_word_embeddings=tied, num_hidden_layers=layers, hidden_size=hidden
    )
