"""Layers of experts that multiply all of a layer's experts together.

Weights stay parameters of their own, as checkpoints and the distributed optimizer know them. The
distributed optimizer keeps them in one buffer, in which ``side_by_side`` has them follow each other
at equal distances, so that ``grouped_products`` need not copy them.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.moe.experts import SequentialMLP
from slime_core.transfer import sent
from torch import Tensor
from torch.nn import functional

from slime_megatron.mcore.experts.grouped_products import GatedGroupedProduct, GroupedProduct


class GroupedExperts(SequentialMLP):
    """``SequentialMLP`` with its experts' products done together. Made by changing the class."""

    def forward(
        self,
        permuted_local_hidden_states: Float[Tensor, "rows hidden"],
        tokens_per_expert: Int[Tensor, " experts"],
        permuted_probs: Float[Tensor, " rows"],
    ) -> tuple[Tensor, None]:
        """Rows sorted by expert, their numbers, and what each row's output is weighed by."""
        x, shares = permuted_local_hidden_states, permuted_probs
        ends = sent(tokens_per_expert.cumsum(0).to(torch.int32), x.device)
        experts: list[Any] = list(self.local_experts)
        first = [expert.linear_fc1.weight for expert in experts]
        second = [expert.linear_fc2.weight for expert in experts]
        opened = GroupedProduct.apply(x, ends, *first)
        return GatedGroupedProduct.apply(opened, shares, ends, *second), None  # type: ignore[return-value]


def group_experts(chunk: torch.nn.Module) -> int:
    """Make every ``SequentialMLP`` of ``chunk`` that can be a ``GroupedExperts``; how many."""
    grouped = 0
    for module in chunk.modules():
        if type(module) is SequentialMLP and _can_be_grouped(module):
            experts: Any = module
            experts.__class__ = GroupedExperts
            grouped += 1
    return grouped


@contextmanager
def side_by_side(chunks: Sequence[torch.nn.Module]) -> Generator[None]:
    """While buffers are filled, which Megatron does from the last parameter to the first.

    Layers hold their experts the other way round meanwhile, so that the first expert's weights
    come first in memory, as a product wants them.
    """
    layers = [m for chunk in chunks for m in chunk.modules() if isinstance(m, GroupedExperts)]
    _turn_round(layers)
    try:
        yield
    finally:
        _turn_round(layers)


def _turn_round(layers: Sequence["GroupedExperts"]) -> None:
    for layer in layers:
        experts: Any = layer.local_experts
        experts._modules = dict(reversed(experts._modules.items()))


def _can_be_grouped(experts: Any) -> bool:
    """Gated by silu, without biases, whole on their rank, and more than one."""
    config = experts.config
    return (
        config.gated_linear_unit
        and config.activation_func is functional.silu
        and config.activation_func_clamp_value is None
        and not (config.glu_linear_offset or config.add_bias_linear)
        and not config.moe_apply_probs_on_input
        and experts.tp_group.size() == 1
        and len(experts.local_experts) > 1
        and all(type(expert) is MLP for expert in experts.local_experts)
    )
