"""Discounted sums along responses, and estimates built on them.

Everything takes a whole ragged batch, all responses laid end to end, and starts anew at each
response. What is not trained on (a tool's tokens, a response that is left out) is no step of the
policy: it has neither reward nor value of its own, is not discounted, and gets 0. The recursions
go from one trained token to the next, over the holes between them:

    delta_t = rho_t + gamma V_{next(t)} - V_t,   A_t = delta_t + gamma lambda A_{next(t)}

with V = A = 0 after the last trained token. So a value at an untrained token counts for nothing,
and the episode ends with the last token that the policy chose, which is where the reward stands.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slime_core.batch import Ragged

Vector = Float[Tensor, " tokens"]
Lengths = Int[Tensor, " samples"]

CHUNK = 64


def discounted(x: Vector, lengths: Lengths, discount: float, *, chunk: int = CHUNK) -> Vector:
    """R_t = x_t + discount R_{t+1} within each response, R = 0 after its last token.

    Responses are cut into chunks of equal width, the last one padded. One product with a
    triangular matrix gives the sums inside all chunks; what enters a chunk from behind is the same
    recursion over the heads of chunks, with discount ** chunk. That is O(tokens * chunk) work and
    O(tokens + samples * chunk) memory; only powers up to ``chunk`` occur, none of them negative,
    so nothing overflows or cancels. Computed in float64, whatever ``x`` is.
    """
    if chunk < 2:
        raise ValueError(f"chunk is {chunk}, must be at least 2")
    longest = int(lengths.max()) if lengths.numel() else 0
    if longest < 2 or discount == 0:
        return x.clone()
    width = min(chunk, longest)
    num_chunks = (lengths + width - 1) // width
    powers = discount ** torch.arange(width + 1, dtype=torch.float64, device=x.device)
    place = _places(lengths, num_chunks * width)
    padded = x.new_zeros(int(num_chunks.sum()) * width, dtype=torch.float64)
    inside = padded.index_put((place,), x.double()).view(-1, width) @ _triangle(powers)
    if longest > width:
        heads = discounted(inside[:, 0], num_chunks, float(powers[width]), chunk=chunk)
        behind = _next(heads, num_chunks)
        inside = inside + behind[:, None] * powers[1:].flip(0)
    return inside.flatten()[place].to(x.dtype)


def discounted_returns(per_token: Vector, mask: Ragged, discount: float) -> Vector:
    """``discounted`` over the trained tokens of each response."""
    trained = _Trained.of(mask)
    return trained.put(discounted(trained.pick(per_token), trained.lengths, discount))


def reinforce_plus_plus(
    kl: Vector, mask: Ragged, rewards: Float[Tensor, " samples"], gamma: float
) -> Vector:
    """Discounted return of the penalised reward; ``kl`` already carries its coefficient.

        rho_t = -kl_t + [t is the last trained token] r,   R_t = rho_t + gamma R_{next(t)}

    A response without trained tokens has return 0. With gamma below 1 and tools' tokens between
    the policy's, upstream discounts over those too.
    Source: REINFORCE++, arXiv:2501.03262: the token-level KL penalty, with gamma 1 there.
    """
    trained = _Trained.of(mask)
    penalised = _plus_terminal(-trained.pick(kl), rewards, trained.lengths)
    return trained.put(discounted(penalised, trained.lengths, gamma))


def generalized(
    kl: Vector,
    values: Vector,
    mask: Ragged,
    rewards: Float[Tensor, " samples"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Vector, Vector]:
    """Advantages and returns; ``kl`` already carries its coefficient.

        rho_t = -kl_t + [t is the last trained token] r
        delta_t = rho_t + gamma V_{next(t)} - V_t
        A_t = delta_t + gamma lambda A_{next(t)},   R = A + V

    Source: generalized advantage estimation, arXiv:1506.02438, eq. 16.
    """
    trained = _Trained.of(mask)
    lengths, estimated = trained.lengths, trained.pick(values)
    penalised = _plus_terminal(-trained.pick(kl), rewards, lengths)
    delta = penalised + gamma * _next(estimated, lengths) - estimated
    advantages = discounted(delta, lengths, gamma * gae_lambda)
    return trained.put(advantages), trained.put(advantages + estimated)


@dataclass(frozen=True, slots=True)
class _Trained:
    """The trained tokens of a batch, without the others."""

    index: Tensor
    """Where they stand."""
    lengths: Tensor
    """[samples] how many a response has"""
    size: int

    @classmethod
    def of(cls, mask: Ragged) -> "_Trained":
        chosen = mask.values > 0
        rows = torch.repeat_interleave(mask.lengths)
        lengths = torch.zeros_like(mask.lengths).index_add(0, rows, chosen.to(mask.lengths))
        return cls(chosen.nonzero().squeeze(1), lengths, mask.values.numel())

    def pick(self, x: Tensor) -> Tensor:
        return x[self.index]

    def put(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.size).index_put((self.index,), x)


def _plus_terminal(per_token: Tensor, rewards: Tensor, lengths: Tensor) -> Tensor:
    """``per_token`` plus each reward at the last token of its response, if it has one."""
    present = lengths > 0
    last = lengths.cumsum(0)[present] - 1
    return per_token.index_add(0, last, rewards[present].to(per_token))


def _next(x: Tensor, lengths: Tensor) -> Tensor:
    """x_{t+1}; 0 at the last token of each response."""
    last = lengths.cumsum(0)[lengths > 0] - 1
    ahead = torch.cat([x[1:], x.new_zeros(min(1, x.numel()))])
    return ahead.index_fill(0, last, 0)


def _places(lengths: Tensor, padded_lengths: Tensor) -> Tensor:
    """Where each token goes when response i starts after the padded lengths before it."""
    shift = (padded_lengths.cumsum(0) - padded_lengths) - (lengths.cumsum(0) - lengths)
    total = int(lengths.sum())
    places = torch.arange(total, device=lengths.device)
    return places + torch.repeat_interleave(shift, lengths, output_size=total)


def _triangle(powers: Tensor) -> Tensor:
    """[i, j] = discount ** (i - j) for i >= j, else 0: what token i adds to token j."""
    steps = torch.arange(powers.numel() - 1, device=powers.device)
    ahead = steps[:, None] - steps
    return torch.where(ahead >= 0, powers[ahead], 0.0)
