"""The biases by which routers choose experts, as exact as in checkpoints."""

from collections.abc import Sequence

import torch
from megatron.core.transformer.moe.router import TopKRouter


def keep_routing_bias(chunks: Sequence[torch.nn.Module]) -> None:
    """Keep the biases that choose experts in float32, as checkpoints have them.

    Megatron does it in the first forward pass, and weights are loaded before.
    """
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, TopKRouter):
                module._maintain_float32_expert_bias()  # pyright: ignore[reportPrivateUsage]
