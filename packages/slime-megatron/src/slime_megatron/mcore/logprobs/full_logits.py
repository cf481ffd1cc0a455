"""All logits of a microbatch, for losses of the user's that want to see them."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor

from slime_megatron.mcore.layers.gathering import wait_for_weights
from slime_megatron.mcore.logprobs.scoring import Scoring, VocabSlice


def full_logits(
    *,
    hidden_states: Tensor,
    output_layer: Any,
    output_weight: Tensor | None,
    context: Scoring,
    config: Any,
    **_: Any,
) -> Float[Tensor, "one rows vocab"]:
    """Megatron's ``output_processor``: float32 logits of every row over the temperature.

    A tensor-parallel rank holds its slice of the vocabulary, without padding. Unlike
    ``output_processor.score`` this keeps [rows, vocab / tp] alive until the backward pass.
    """
    wait_for_weights(output_layer)
    weight = output_layer.weight if output_weight is None else output_weight
    if config.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden_states)[:, 0]
    else:
        hidden = copy_to_tensor_model_parallel_region(hidden_states[:, 0])
    vocab = VocabSlice.of(weight.shape[0], context.vocab_size)
    return ((hidden @ weight[: vocab.size].T).float() / context.temperature)[None]


def log_probs_and_entropy(
    logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Log p of the targets and entropies, from logits cut over tensor-parallel ranks.

    Every rank gets all of them, and computes the same loss from them; gradients flow back into the
    rank's own columns.
    """
    num_columns = logits.shape[-1]
    shifted = logits - _largest(logits)[:, None]
    column = targets - _first_column(num_columns)
    there = (column >= 0) & (column < num_columns)
    if num_columns:
        own = shifted.gather(-1, column.clamp(0, num_columns - 1)[:, None])[:, 0]
        own = torch.where(there, own, torch.zeros_like(own))
    else:
        own = shifted.sum(-1)
    powers = shifted.exp()
    sums = torch.stack([powers.sum(-1), own, (powers * shifted).sum(-1)])
    total, picked, mean = reduce_from_tensor_model_parallel_region(sums).unbind()
    log_total = total.log()
    return picked - log_total, log_total - mean / total


@torch.no_grad()
def _largest(logits: Tensor) -> Tensor:
    """Of each row, over all ranks."""
    largest = logits.new_full((len(logits),), -torch.inf)
    if logits.shape[-1]:
        largest = logits.amax(-1)
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        group: Any = parallel_state.get_tensor_model_parallel_group()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return largest


def _first_column(num_columns: int) -> int:
    """Which token the first column stands for: only the last ranks' slices are cut short."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1:
        return 0
    group: Any = parallel_state.get_tensor_model_parallel_group()
    widths: list[Any] = [0] * size
    dist.all_gather_object(widths, num_columns, group=group)
    return sum(widths[: parallel_state.get_tensor_model_parallel_rank()])
