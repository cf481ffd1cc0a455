"""Each row's sums over the whole vocabulary, of which every rank holds a slice."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from slime_megatron.iteration.passes import Entropy
from slime_megatron.mcore.logprobs.logits import LogitRows
from slime_megatron.mcore.logprobs.scoring import Scoring, VocabSlice


@dataclass(frozen=True)
class WholeSums:
    """Of rows over the whole vocabulary; ``total`` and ``mean`` relative to ``largest``."""

    own_largest: Float[Tensor, " rows"]
    """In this rank's slice."""
    largest: Float[Tensor, " rows"]
    total: Float[Tensor, " rows"]
    mean: Float[Tensor, " rows"]
    target: Float[Tensor, " rows"]
    """Its logit before the temperature."""


def whole_sums(logits: LogitRows, column: Int[Tensor, " rows"], vocab: VocabSlice) -> WholeSums:
    """Those of some rows, on every rank of ``vocab.group``; ``column``: of each row's target."""
    own, total, mean, target = logits.sums(column).unbind()
    if vocab.group is None:
        return WholeSums(own, own, total, mean, target)
    largest = own.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=vocab.group)
    # A rank that holds only padding has -inf, which must not meet its zeros.
    shift = (own - largest).clamp(min=torch.finfo(own.dtype).min)
    scale = shift.exp()
    sums = torch.stack([scale * total, scale * (mean + shift * total), target])
    dist.all_reduce(sums, group=vocab.group)
    return WholeSums(own, largest, *sums.unbind())


def over_all_tokens(
    sums: WholeSums, scoring: Scoring
) -> tuple[Float[Tensor, "two rows"], Float[Tensor, " rows"]]:
    """([log-probability, entropy], log normaliser) over all tokens."""
    log_total = sums.total.log()
    log_prob = sums.target * scoring.scale - sums.largest - log_total
    if scoring.entropy is Entropy.NONE:
        entropy = torch.zeros_like(log_total)
    else:
        entropy = log_total - sums.mean / sums.total
    return torch.stack([log_prob, entropy]), sums.largest + log_total
