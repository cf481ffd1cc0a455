"""Log-probabilities within the nucleus that the engine drew from (arXiv 1904.09751).

The most probable tokens whose probabilities, at this temperature, add up to ``top_p`` are kept and
share all the probability. Tokens as probable as the least of them are kept too, for which of them
an engine's sort takes is chance, and so is the target: engine and trainer round differently, and a
token that was drawn must not become impossible.

    N = {j : x_j >= theta} + {t},  theta = max {x : sum_{x_j >= x} p_j >= top_p}
    log p = x_t - log sum_{j in N} e^x_j      d log p / dx_j = [j = t] - [j in N] e^x_j / sum_N

The set is taken as given when going back. ``theta`` is searched among the numbers that the logits'
type can hold, so it is exact, in as many passes over a chunk as half that type's bits, and no rank
sees another's logits.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from slime_megatron.mcore.logprobs.logits import LogitRows
from slime_megatron.mcore.logprobs.scoring import Scoring, VocabSlice
from slime_megatron.mcore.logprobs.whole_sums import WholeSums

NUCLEUS_NUMBERS = 3
"""How many numbers going back needs of each row's nucleus."""

_BITS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def within_nucleus(
    logits: LogitRows, sums: WholeSums, scoring: Scoring, vocab: VocabSlice
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "three rows"]]:
    """Log-probability within the nucleus; [threshold, 1 / its probability, rise] of it.

    ``rise`` is d log p / d x_t where the rest of the gradient leaves out all below the threshold.
    """
    scale = (sums.own_largest - sums.largest).exp()

    def masses(thresholds: Tensor) -> Tensor:
        found = logits.masses(thresholds, sums.own_largest) * scale
        if vocab.group is not None:
            dist.all_reduce(found, group=vocab.group)
        return found

    threshold = _threshold(masses, scoring.top_p * sums.total, logits.dtype)
    log_power = sums.target * scoring.scale - sums.largest
    outside = sums.target < threshold
    mass = masses(threshold[None])[0] + torch.where(outside, log_power.exp(), 0.0)
    log_prob = log_power - mass.log()
    rise = 1 - torch.where(outside, log_prob.exp(), 0.0)
    return log_prob, torch.stack([threshold.to(mass.dtype), sums.total / mass, rise])


def _threshold(
    masses: Callable[[Tensor], Tensor], goal: Float[Tensor, " rows"], dtype: torch.dtype
) -> Float[Tensor, " rows"]:
    """The largest number of type ``dtype`` at which ``masses`` is at least ``goal``.

    A float's bits, read as an integer, are in the order of the floats, once those of negative
    numbers are turned round. Each pass tries three integers and leaves a quarter of the range.
    """
    integer = _BITS[dtype]
    most = torch.iinfo(integer).max

    def turned(bits: Tensor) -> Tensor:
        return bits ^ ((bits >> (torch.iinfo(integer).bits - 1)) & most)

    def between(low: Tensor, high: Tensor) -> Tensor:
        return (low & high) + ((low ^ high) >> 1)  # of the sum, but without its overflow

    high = turned(torch.full(goal.shape, torch.inf, dtype=dtype, device=goal.device).view(integer))
    low = -high - 1  # minus infinity
    for _ in range(torch.iinfo(integer).bits // 2):
        middle = between(low, high)
        tried = torch.stack([between(low, middle), middle, between(middle, high)])
        reached = (masses(turned(tried).view(dtype)) >= goal).sum(0)
        edges = torch.cat([low[None], tried, high[None]])
        low, high = (edges.gather(0, (reached + i)[None])[0] for i in range(2))
    return turned(low).view(dtype)
