"""Tokens sent to experts and back so that the same input gives the same bits in every pass."""

from typing import Any

import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor

from slime_megatron.mcore.experts.routes import Routes, collected, spread


class OrderedDispatcher(MoEAlltoAllTokenDispatcher):
    """Sends tokens to experts and adds what comes back as ``routes`` does.

    Megatron adds by scattering with atomic additions in the model's precision, whose order on a GPU
    is another in every pass: log-probabilities of one policy would differ from pass to pass.
    """

    routes: Routes

    def dispatch_preprocess(
        self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows sorted by expert, [tokens * topk, hidden], and what each one's output is weighed by.

        ``routing_map`` [tokens, experts]: who goes where; ``probs`` of the same shape.
        """
        self.hidden_shape, self.probs, self.routing_map = hidden_states.shape, probs, routing_map
        rows = hidden_states.view(-1, self.hidden_shape[-1])
        self.tokens_per_expert = self.preprocess(routing_map)
        if not self._is_alone:
            self.tokens_per_expert = self._maybe_dtoh_and_synchronize(
                "before_permutation_1", self.tokens_per_expert
            )
        self.routes = Routes.of(routing_map, self.config.moe_router_topk)
        return spread(rows, self.routes), self.routes.picked(probs)

    def dispatch_postprocess(
        self, global_input_tokens: Tensor, global_probs: Tensor
    ) -> tuple[Tensor, Any, Tensor | None]:
        """Rows of all ranks by expert; those of one rank are, and the host need not count them."""
        if not self._is_alone:
            return super().dispatch_postprocess(global_input_tokens, global_probs)
        counts, self.tokens_per_expert = self.tokens_per_expert, None
        return global_input_tokens, counts, global_probs

    def combine_preprocess(self, hidden_states: Tensor) -> Tensor:
        """The way back: by rank; of one rank nothing is to be done."""
        return hidden_states if self._is_alone else super().combine_preprocess(hidden_states)

    def combine_postprocess(self, permutated_local_input_tokens: Tensor) -> Tensor:
        """[tokens * topk, hidden], grouped by expert -> the layer's output."""
        return collected(permutated_local_input_tokens, self.routes).view(self.hidden_shape)

    @property
    def _is_alone(self) -> bool:
        return self.tp_size * self.ep_size == 1


def sum_experts_in_order(chunk: torch.nn.Module) -> None:
    """Give every layer of experts of ``chunk`` an ``OrderedDispatcher``."""
    for module in chunk.modules():
        if isinstance(module, MoELayer):
            dispatcher: Any = module.token_dispatcher
            if type(dispatcher) is MoEAlltoAllTokenDispatcher and not dispatcher.drop_and_pad:
                assert dispatcher.shared_experts is None, "their computation is not overlapped"
                dispatcher.__class__ = OrderedDispatcher
