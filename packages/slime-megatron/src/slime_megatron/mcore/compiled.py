"""Dense layers under ``torch.compile``: pointwise work between matrix products is fused."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_layer import TransformerLayer

logger = logging.getLogger(__name__)


def why_not(args: Any, device: torch.device) -> str | None:
    """What keeps layers from being compiled; None where nothing does."""
    if device.type != "cuda":
        return "on a CPU compiling takes longer than it saves"
    if args.tensor_model_parallel_size > 1:
        return "collectives of tensor parallelism end compiled regions"
    if args.recompute_granularity is not None:
        return "recomputed layers are run again as they are"
    return None


def compile_layers(chunks: Sequence[torch.nn.Module]) -> int:
    """Compile every layer without experts, in place; how many there are.

    All layers of one kind share one compiled function, made in the first passes: one with gradient
    and one without, and again when the number of tokens first changes. Attention itself is left
    out of it. Parameters keep their names.
    """
    layers = [
        module
        for chunk in chunks
        for module in chunk.modules()
        if isinstance(module, TransformerLayer) and isinstance(module.mlp, MLP)
    ]
    for layer in layers:
        attention: Any = getattr(layer.self_attention, "core_attention")  # noqa: B009
        # Its shapes follow the lengths of sequences, which differ in every microbatch.
        attention.forward = torch.compiler.disable(attention.forward)
        layer.compile()
    logger.info("%d layers are compiled", len(layers))
    return len(layers)
