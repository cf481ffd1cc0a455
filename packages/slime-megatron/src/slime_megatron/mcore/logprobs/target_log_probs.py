"""Log-probabilities of target tokens and entropies, with the gradients of hidden states and weight.

The logits of all tokens need not exist. Rows are taken ``chunk_size`` at a time, in the forward and
again in the backward pass, so at most [chunk_size, vocab / tp] of them are alive: once, in the
model's precision, on a GPU; a few times in float32 on a CPU. With ``keep``, a GPU that has room for
twice as much keeps those of the forward pass, which saves a quarter of the products. The gradient
of the output weight is added up in float32. Each tensor-parallel rank holds a slice of the
vocabulary; maxima and sums are exchanged. Nothing waits for the device.

    x_j = <h, w_j> / T      log p = x_t - log sum_j e^x_j      H = log Z - sum_j e^x_j x_j / Z
    d log p / dx_j = [j = t] - p_j                             dH / dx_j = -p_j (log p_j + H)

With top-p the log-probability is that of ``nucleus``; the entropy remains that of all tokens.
Padding of the vocabulary takes no part: its columns are never computed.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from slime_megatron.iteration.passes import Entropy
from slime_megatron.mcore.logprobs.logit_memory import LogitMemory
from slime_megatron.mcore.logprobs.logits import Slopes, precision
from slime_megatron.mcore.logprobs.nucleus import NUCLEUS_NUMBERS, within_nucleus
from slime_megatron.mcore.logprobs.scoring import Scoring, VocabSlice
from slime_megatron.mcore.logprobs.whole_sums import over_all_tokens, whole_sums
from slime_megatron.mcore.products.summed_products import add_product


def target_log_probs(
    hidden: Float[Tensor, "scored hidden"],
    weight: Float[Tensor, "padded hidden"],
    scoring: Scoring,
    vocab: VocabSlice,
) -> Float[Tensor, "two scored"]:
    """Log-probabilities of ``scoring.targets`` in row 0, entropies in row 1, in float32.

    ``hidden`` holds the scored rows only. Its gradient on each rank of ``vocab.group`` is that of
    the rank's own slice: the caller adds them. Needs no state of Megatron's.
    """
    keep = scoring.keep and torch.is_grad_enabled() and hidden.is_cuda
    memory = LogitMemory(hidden, weight[: vocab.size], scoring, whole=keep)
    return _TargetLogProbs.apply(hidden, weight, scoring, vocab, memory)  # type: ignore[no-any-return]


class _TargetLogProbs(torch.autograd.Function):
    """Chunked log-probability and entropy; recomputes the logits when going back."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        scoring: Scoring,
        vocab: VocabSlice,
        memory: LogitMemory,
    ) -> Tensor:
        """Score every row of ``hidden``."""
        number = precision(hidden.dtype)
        out = torch.zeros(2, hidden.shape[0], dtype=number, device=hidden.device)
        normaliser = torch.zeros_like(out[0])
        nucleus = out.new_zeros(NUCLEUS_NUMBERS, len(hidden)) if scoring.top_p < 1 else None
        column = vocab.column(scoring.targets)
        for at in memory.chunks:
            logits = memory.logits(at)
            sums = whole_sums(logits, column[at], vocab)
            out[:, at], normaliser[at] = over_all_tokens(sums, scoring)
            if nucleus is not None:
                out[0, at], nucleus[:, at] = within_nucleus(logits, sums, scoring, vocab)
        ctx.save_for_backward(hidden, weight, column, normaliser, out, nucleus)
        ctx.scoring, ctx.vocab = scoring, vocab
        ctx.memory = memory if memory.whole else None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of this rank's slice; hidden gradients are partial sums over the ranks."""
        hidden, weight, column, normaliser, out, nucleus = ctx.saved_tensors
        scoring, live = ctx.scoring, weight[: ctx.vocab.size]
        memory, ctx.memory = ctx.memory or LogitMemory(hidden, live, scoring), None
        to_hidden, to_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if to_hidden else None
        d_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if to_weight else None
        slopes = _slopes(grad, normaliser, out[1], nucleus, scoring)
        d_live = None if d_weight is None else d_weight[: ctx.vocab.size]
        _multiply_back(memory, column, slopes, d_hidden, d_live)
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, None, None, None


def _slopes(
    grad: Tensor, normaliser: Tensor, entropy: Tensor, nucleus: Tensor | None, scoring: Scoring
) -> Slopes:
    scaled = (grad * scoring.scale).contiguous()
    drop, rise, threshold = -scaled[0], scaled[0], None
    if nucleus is not None:
        threshold = nucleus[0]
        drop, rise = drop * nucleus[1], rise * nucleus[2]
    spread = scaled[1] if scoring.entropy is Entropy.TRAIN else None
    return Slopes(normaliser, drop, rise, spread, entropy, threshold)


def _multiply_back(
    memory: LogitMemory,
    column: Tensor,
    slopes: Slopes,
    d_hidden: Tensor | None,
    d_live: Tensor | None,
) -> None:
    """Write the gradient of the hidden states, add to that of the weight."""
    for at, logits in memory.again():
        d_logits = logits.gradient(column[at], slopes.chunk(at))
        if d_hidden is not None:
            torch.mm(d_logits, memory.live, out=d_hidden[at])
        if d_live is not None:
            add_product(d_live, d_logits.T, memory.hidden[at])
