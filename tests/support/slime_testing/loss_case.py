"""Loss inputs made by hand, batches cut over ranks and microbatches, and sums over such ranks."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from slime_core.batch import LocalTokens, LossInputs
from torch import Tensor


def make_tokens(
    lengths: Sequence[int],
    *,
    mask: Sequence[float] | None = None,
    denominators: Sequence[float] | float = 1.0,
) -> LocalTokens:
    """All tokens of responses of ``lengths`` on one rank, float64."""
    total = sum(lengths)
    below = [denominators] * total if isinstance(denominators, int | float) else denominators
    return LocalTokens(
        mask=torch.tensor([1.0] * total if mask is None else mask, dtype=torch.float64),
        denominators=torch.tensor(below, dtype=torch.float64),
        sample=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths).long()),
        position=torch.arange(total),
        response_lengths=tuple(lengths),
    )


def vector(values: Sequence[float]) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def make_inputs(
    ratio: Sequence[float],
    advantages: Sequence[float],
    *,
    tokens: LocalTokens | None = None,
    **changes: Tensor,
) -> LossInputs:
    """Tokens whose new policy is ``ratio`` times the old one; one rollout unless told otherwise."""
    ratios = vector(ratio)
    old = torch.full_like(ratios, -1.0)
    inputs = LossInputs(
        tokens=tokens or make_tokens([len(ratio)], denominators=float(len(ratio))),
        log_probs=(old + ratios.log()).requires_grad_(),
        old_log_probs=old,
        advantages=vector(advantages),
    )
    return replace(inputs, **changes)


def pick_tokens(tokens: LocalTokens, places: Tensor) -> LocalTokens:
    """The tokens at ``places`` of a rank that holds all: what one of several ranks holds."""
    return replace(
        tokens,
        mask=tokens.mask[places],
        denominators=tokens.denominators[places],
        sample=tokens.sample[places],
        position=tokens.position[places],
    )


class SharedReduce:
    """Sums over ranks that are threads of one process, inside one autograd graph.

    As every rank gets the same sum and the total loss is the sum of the ranks' losses, the gradient
    that reaches a rank's summand is the sum of what all ranks send back: just what a collective
    with a summing backward pass does.
    """

    def __init__(self, num_ranks: int) -> None:
        self._barrier = threading.Barrier(num_ranks, timeout=60)
        self._slots: list[Tensor | None] = [None] * num_ranks

    def rank(self, rank: int) -> "RankReduce":
        """One rank's end of it."""
        return RankReduce(self, rank)

    def exchange(self, rank: int, x: Tensor) -> Tensor:
        """Wait for every rank's summand; the sum."""
        self._slots[rank] = x
        self._barrier.wait()
        total = torch.stack([slot for slot in self._slots if slot is not None]).sum(0)
        self._barrier.wait()
        return total


class RankReduce:
    """``slime_core.interfaces.Reduce`` of one of several simulated ranks."""

    def __init__(self, shared: SharedReduce, rank: int) -> None:
        self._shared, self._rank = shared, rank

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self._shared.exchange(self._rank, x)


def on_ranks[T](num_ranks: int, work: Callable[[int, RankReduce], T]) -> list[T]:
    """Run ``work(rank, reduce)`` on every simulated rank at once."""
    shared = SharedReduce(num_ranks)
    with ThreadPoolExecutor(num_ranks) as pool:
        calls = [pool.submit(work, rank, shared.rank(rank)) for rank in range(num_ranks)]
        return [call.result(timeout=120) for call in calls]
