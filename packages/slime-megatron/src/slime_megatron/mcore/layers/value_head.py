"""One number per token in place of the vocabulary: how critics and reward models end."""

from typing import Any

import torch
from jaxtyping import Float
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor, nn

from slime_megatron.mcore.logprobs.scoring import Scoring


class ValueHead(nn.Module):
    """v = <h, w>, in float32, with w whole on every tensor-parallel rank.

    It starts at zero, so that an untrained critic says 0 for everything instead of noise, whose
    scale would be a further thing to choose; the first step moves the head, the next ones the model
    below it too.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))

    def forward(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, " rows"]:
        """The value of each row."""
        return nn.functional.linear(hidden.float(), self.weight.float())[:, 0]


def value_scores(
    *, hidden_states: Tensor, output_layer: ValueHead, context: Scoring, config: Any, **_: Any
) -> Float[Tensor, "one scored"]:
    """Megatron's ``output_processor``: the values of the scored rows.

    Every tensor-parallel rank computes all of them from the same hidden states, so gradients are
    whole on every rank already: where sequence parallelism gathers rows, going back only cuts.
    """
    if config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False
        )
    return output_layer(hidden_states[:, 0].index_select(0, context.rows))[None]
