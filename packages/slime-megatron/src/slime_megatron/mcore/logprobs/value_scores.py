"""The end of a model with a value head, as Megatron calls it: hidden states to values."""

from typing import Any

from jaxtyping import Float
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from slime_megatron.mcore.layers.value_head import ValueHead
from slime_megatron.mcore.logprobs.scoring import Scoring


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
