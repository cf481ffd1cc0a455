"""Log-probabilities of target tokens and entropy, straight from hidden states.

The logits of all tokens never exist. Rows are taken ``chunk_size`` at a time, in the forward and
again in the backward pass, so at most [chunk_size, vocab / tp] of them are alive, in float32. Each
tensor-parallel rank holds a slice of the vocabulary; maxima and sums are exchanged.

    x_j = <h, w_j> / T      log p = x_t - log sum_j e^x_j      H = log Z - sum_j e^x_j x_j / Z
    d log p / dx_j = [j = t] - p_j                             dH / dx_j = -p_j (log p_j + H)

Padding of the vocabulary takes no part: its columns are never computed.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from slime_megatron.passes import Entropy


@dataclass(frozen=True)
class VocabSlice:
    """The part of the vocabulary this rank scores: tokens ``start`` to ``start + size - 1``."""

    start: int
    size: int
    group: Any
    """The ranks that hold the other parts; None if there are none."""

    @classmethod
    def of(cls, rows: int, vocab_size: int) -> "VocabSlice":
        """The slice of an output layer with ``rows`` rows on this tensor-parallel rank."""
        rank = parallel_state.get_tensor_model_parallel_rank()
        alone = parallel_state.get_tensor_model_parallel_world_size() == 1
        group = None if alone else parallel_state.get_tensor_model_parallel_group()
        return cls(rank * rows, max(0, min(rows, vocab_size - rank * rows)), group)


@dataclass(frozen=True)
class Scoring:
    """What to compute at the end of the model for one microbatch."""

    rows: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]
    vocab_size: int
    """Without padding."""
    temperature: float = 1.0
    chunk_size: int = 1024
    entropy: Entropy = Entropy.NONE


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
    weight = output_layer.weight if output_weight is None else output_weight
    if config.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden_states)[:, 0]
        picked = hidden.index_select(0, context.rows)
    else:
        picked = hidden_states[:, 0].index_select(0, context.rows)
        picked = copy_to_tensor_model_parallel_region(picked)
    vocab = VocabSlice.of(weight.shape[0], context.vocab_size)
    return TargetLogProbs.apply(picked, weight, context, vocab)  # type: ignore[no-any-return]


class TargetLogProbs(torch.autograd.Function):
    """Chunked log-probability and entropy; recomputes the logits when going back."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, scoring: Scoring, vocab: VocabSlice
    ) -> Tensor:
        """Score every row of ``hidden``."""
        out = torch.zeros(2, hidden.shape[0], dtype=torch.float32, device=hidden.device)
        log_z = torch.zeros_like(out[0])
        for rows in _chunks(hidden.shape[0], scoring.chunk_size):
            logits = _logits(hidden[rows], weight, scoring, vocab)
            out[:, rows], log_z[rows] = _reduce(logits, scoring.targets[rows], scoring, vocab)
        ctx.save_for_backward(hidden, weight, log_z, out[1])
        ctx.scoring, ctx.vocab = scoring, vocab
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of this rank's slice; hidden gradients are partial sums over the ranks."""
        hidden, weight, log_z, entropy = ctx.saved_tensors
        scoring, vocab = ctx.scoring, ctx.vocab
        live = weight[: vocab.size]
        d_hidden = torch.zeros_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=torch.float32)
        for rows in _chunks(hidden.shape[0], scoring.chunk_size):
            log_p = _logits(hidden[rows], weight, scoring, vocab) - log_z[rows, None]
            d_logits = _logit_gradient(
                log_p, grad[:, rows], scoring.targets[rows], entropy[rows], scoring, vocab
            ).to(hidden.dtype)
            d_hidden[rows] = d_logits @ live
            d_weight[: vocab.size] += d_logits.T @ hidden[rows]
        return d_hidden, d_weight.to(weight.dtype), None, None


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _logits(hidden: Tensor, weight: Tensor, scoring: Scoring, vocab: VocabSlice) -> Tensor:
    """This rank's columns, float32, divided by the temperature."""
    logits = (hidden @ weight[: vocab.size].T).float()
    return logits if scoring.temperature == 1.0 else logits / scoring.temperature


def _own(targets: Tensor, vocab: VocabSlice) -> tuple[Tensor, Tensor]:
    """Column of each target in this slice, and whether it is there."""
    column = targets - vocab.start
    there = (column >= 0) & (column < vocab.size)
    return column.clamp(0, max(vocab.size - 1, 0)), there


def _reduce(
    logits: Tensor, targets: Tensor, scoring: Scoring, vocab: VocabSlice
) -> tuple[Tensor, Tensor]:
    """([log-probability, entropy], log normaliser) of one chunk."""
    if vocab.size:
        largest = logits.amax(-1)
    else:
        largest = torch.full((len(targets),), -torch.inf, device=logits.device)
    if vocab.group is not None:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=vocab.group)
    shifted = logits - largest[:, None]
    column, there = _own(targets, vocab)
    if vocab.size:
        picked = torch.where(there, shifted.gather(-1, column[:, None])[:, 0], 0.0)
    else:
        picked = torch.zeros_like(largest)
    powers = shifted.exp()
    wanted = scoring.entropy is not Entropy.NONE
    mean = (powers * shifted).sum(-1) if wanted else torch.zeros_like(picked)
    sums = torch.stack([powers.sum(-1), picked, mean])
    if vocab.group is not None:
        dist.all_reduce(sums, group=vocab.group)
    total, picked, mean = sums.unbind()
    log_total = total.log()
    entropy = log_total - mean / total if wanted else torch.zeros_like(mean)
    return torch.stack([picked - log_total, entropy]), largest + log_total


def _logit_gradient(
    log_p: Tensor,
    grad: Tensor,
    targets: Tensor,
    entropy: Tensor,
    scoring: Scoring,
    vocab: VocabSlice,
) -> Tensor:
    """d(loss) / d(logits before the temperature) of one chunk."""
    p = log_p.exp()
    d_logits = p * -grad[0, :, None]
    if scoring.entropy is Entropy.TRAIN:
        d_logits -= grad[1, :, None] * p * (log_p + entropy[:, None])
    if vocab.size:
        column, there = _own(targets, vocab)
        d_logits.scatter_add_(1, column[:, None], (grad[0] * there)[:, None])
    return d_logits if scoring.temperature == 1.0 else d_logits / scoring.temperature
