"""Logits of two Hugging Face checkpoints, computed by transformers in float32."""

import contextlib
import importlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from slime_core.errors import CheckpointError
from torch import Tensor

TOKENS = 32


def largest_difference(first: Path, second: Path) -> float:
    """Return by how much the logits of the two differ on a fixed sequence of tokens.

    One model is in memory at a time.
    """
    a, b = _logits(first), _logits(second)
    if a.shape != b.shape:
        raise CheckpointError(f"logits have shapes {list(a.shape)} and {list(b.shape)}")
    return float((a - b).abs().max())


@torch.no_grad()
def _logits(directory: Path) -> Tensor:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise CheckpointError(
            "--logits computes with transformers, which is not installed: pip install transformers"
        ) from error
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True
            ).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"transformers cannot load {directory}: {reason}") from error
    size = int(model.config.vocab_size)
    tokens = torch.randint(size, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    return model(tokens).logits
