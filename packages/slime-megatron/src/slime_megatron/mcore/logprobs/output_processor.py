"""The end of the model, as Megatron calls it: hidden states to log-probabilities and entropies."""

from typing import Any

from jaxtyping import Float
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from slime_megatron.mcore.layers.gathering import wait_for_weights
from slime_megatron.mcore.logprobs.scoring import Scoring, VocabSlice
from slime_megatron.mcore.logprobs.target_log_probs import target_log_probs


def score(
    *,
    hidden_states: Tensor,
    output_layer: Any,
    output_weight: Tensor | None,
    context: Scoring,
    config: Any,
    **_: Any,
) -> Float[Tensor, "two scored"]:
    """Megatron's ``output_processor``: log-probabilities in row 0, entropies in row 1.

    ``hidden_states`` is [rows, 1, hidden]; under sequence parallelism each tensor-parallel rank
    holds a part of the rows.
    """
    wait_for_weights(output_layer)
    weight = output_layer.weight if output_weight is None else output_weight
    if config.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden_states).squeeze(1)
        picked = hidden.index_select(0, context.rows)
    else:
        picked = hidden_states.squeeze(1).index_select(0, context.rows)
        picked = copy_to_tensor_model_parallel_region(picked)
    vocab = VocabSlice.of(weight.shape[0], context.vocab_size)
    return target_log_probs(picked, weight, context, vocab)
