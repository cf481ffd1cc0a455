"""Layers of experts as Megatron builds them, made repeatable and exact."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor


class OrderedDispatcher(MoEAlltoAllTokenDispatcher):
    """Adds what a token's experts give in the order of the experts, in float32.

    Megatron scatters it with atomic additions in the model's precision, whose order on a GPU is
    another in every pass: log-probabilities of one policy would differ from pass to pass.
    """

    def combine_postprocess(self, permutated_local_input_tokens: Tensor) -> Tensor:
        """[tokens * topk, hidden], grouped by expert -> the layer's output."""
        tokens = self.hidden_shape_before_permute[0]
        rows = self.reversed_local_input_permutation_mapping
        return sum_by_token(permutated_local_input_tokens, rows, tokens).view(self.hidden_shape)


def sum_by_token(x: Tensor, token_of_row: Tensor, tokens: int) -> Tensor:
    """[tokens, hidden]: the sum of each token's rows of ``x``; all tokens have equally many."""
    order = torch.sort(token_of_row, stable=True).indices
    rows = x.index_select(0, order).view(tokens, -1, x.shape[-1])
    return rows.sum(1, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.dtype)


def sum_experts_in_order(chunk: torch.nn.Module) -> None:
    """Give every layer of experts of ``chunk`` an ``OrderedDispatcher``."""
    for module in chunk.modules():
        if isinstance(module, MoELayer):
            dispatcher: Any = module.token_dispatcher
            if type(dispatcher) is MoEAlltoAllTokenDispatcher and not dispatcher.drop_and_pad:
                assert dispatcher.shared_experts is None, "their computation is not overlapped"
                dispatcher.__class__ = OrderedDispatcher


def keep_routing_bias(chunks: Sequence[torch.nn.Module]) -> None:
    """Keep the biases that choose experts in float32, as checkpoints have them.

    Megatron does it in the first forward pass, and weights are loaded before.
    """
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, TopKRouter):
                module._maintain_float32_expert_bias()  # pyright: ignore[reportPrivateUsage]
