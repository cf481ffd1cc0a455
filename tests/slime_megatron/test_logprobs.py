"""Chunked, vocabulary-parallel scoring against plain log-softmax."""

from typing import Any

import pytest
from slime_testing.ranks import run_on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VOCAB, HIDDEN, ROWS = 37, 6, 11


def dense(hidden: Any, weight: Any, targets: Any, temperature: float) -> Any:
    import torch

    scores = (hidden @ weight[:VOCAB].T / temperature).log_softmax(-1)
    picked = scores.gather(-1, targets[:, None])[:, 0]
    return torch.stack([picked, -(scores.exp() * scores).sum(-1)])


def score_on_rank(rank: int, world: int, cases: list[tuple[int, float, int]]) -> list[float]:
    """Worst difference of values and gradients per (padded vocabulary, temperature, chunk)."""
    import torch
    import torch.distributed as dist
    from slime_megatron.mcore.logprobs import Scoring, TargetLogProbs, VocabSlice
    from slime_megatron.passes import Entropy

    worst: list[float] = []
    for padded, temperature, chunk in cases:
        generator = torch.Generator().manual_seed(3)
        hidden = torch.randn(ROWS, HIDDEN, generator=generator, requires_grad=True)
        weight = torch.randn(padded, HIDDEN, generator=generator, requires_grad=True)
        targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
        w = torch.randn(2, ROWS, generator=generator)
        wanted = dense(hidden, weight, targets, temperature)
        (wanted * w).sum().backward()
        share = padded // world
        part = weight.detach()[rank * share : (rank + 1) * share].clone().requires_grad_()
        own = hidden.detach().clone().requires_grad_()
        vocab = VocabSlice(rank * share, max(0, min(share, VOCAB - rank * share)), dist.group.WORLD)
        scoring = Scoring(
            rows=torch.arange(ROWS), targets=targets, vocab_size=VOCAB, temperature=temperature,
            chunk_size=chunk, entropy=Entropy.TRAIN,
        )  # fmt: skip
        found = TargetLogProbs.apply(own, part, scoring, vocab)
        (found * w).sum().backward()
        dist.all_reduce(own.grad)
        differences = (
            found - wanted,
            own.grad - hidden.grad,
            part.grad - weight.grad[rank * share : (rank + 1) * share],
        )
        worst.append(max(float(d.abs().max()) for d in differences))
    return worst


def reduce_on_rank(rank: int, world: int) -> tuple[float, float]:
    """Value and gradient of sum_r c_r (sum_s x_s)^2 at x = rank + 1, c = rank + 1."""
    import torch
    import torch.distributed as dist
    from slime_megatron.mcore.reduce import GroupReduce

    x = torch.tensor([rank + 1.0], requires_grad=True)
    total = GroupReduce(dist.group.WORLD, torch.device("cpu")).sum(x)
    ((rank + 1) * total**2).sum().backward()
    return float(total), float(x.grad)


def both(rank: int, world: int, cases: Any) -> tuple[list[float], tuple[float, float]]:
    return score_on_rank(rank, world, cases), reduce_on_rank(rank, world)


def test_values_and_gradients_are_exact_at_every_slicing_padding_temperature_and_chunk():
    # 64 rows over 2 ranks leave the second with 5 real ones; 80 leave it with none.
    cases = [(38, 1.0, 4), (38, 0.6, 1000), (64, 1.7, 3), (80, 1.0, 11)]
    for worst, (total, grad) in run_on_ranks(2, both, cases, megatron=True):
        assert max(worst) < 1e-5
        # d/dx of 1 (x1 + x2)^2 + 2 (x1 + x2)^2 at x1 + x2 = 3.
        assert (total, grad) == (3.0, 18.0)
