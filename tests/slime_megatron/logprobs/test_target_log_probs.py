"""Chunked, vocabulary-parallel scoring against plain log-softmax."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_on_ranks
from slime_testing.scoring_case import ROWS, VOCAB, dense, dense_of, example, load, product

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Case:
    padded: int
    temperature: float
    chunk: int
    top_p: float = 1.0


def score_on_rank(rank: int, world: int, cases: list[Case]) -> list[float]:
    """Worst difference of values and gradients in each case."""
    import torch.distributed as dist

    module = load()
    worst: list[float] = []
    for case in cases:
        hidden, weight, targets = example(case.padded, torch.float32)
        w = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(4))
        wanted = dense(hidden, weight, targets, case.temperature, case.top_p)
        (wanted * w).sum().backward()
        share = case.padded // world
        part = weight.detach()[rank * share : (rank + 1) * share].clone().requires_grad_()
        own = hidden.detach().clone().requires_grad_()
        size = max(0, min(share, VOCAB - rank * share))
        vocab = module.VocabSlice(rank * share, size, dist.group.WORLD)
        scoring = module.Scoring(
            rows=torch.arange(ROWS), targets=targets, vocab_size=VOCAB,
            temperature=case.temperature, chunk_size=case.chunk, top_p=case.top_p,
            entropy=module.Entropy.TRAIN,
        )  # fmt: skip
        found = module.target_log_probs(own, part, scoring, vocab)
        (found * w).sum().backward()
        dist.all_reduce(own.grad)
        differences = (
            found - wanted,
            own.grad - hidden.grad,
            part.grad - weight.grad[rank * share : (rank + 1) * share],
        )
        worst.append(max(float(d.abs().max()) for d in differences))
    return worst


def test_values_and_gradients_are_exact_at_every_slicing_padding_temperature_and_chunk():
    # 64 rows over 2 ranks leave the second with 5 real ones; 80 leave it with none.
    cases = [
        Case(38, 1.0, 4), Case(38, 0.6, 1000), Case(64, 1.7, 3), Case(80, 1.0, 11),
        Case(38, 1.0, 4, top_p=0.9), Case(38, 0.6, 1000, top_p=0.5), Case(64, 1.7, 3, top_p=0.95),
        Case(80, 1.0, 11, top_p=0.2),
    ]  # fmt: skip
    for worst in run_on_ranks(2, score_on_rank, cases, megatron=True):
        assert max(worst) < 1e-5, worst


def differentiate(rank: int, world: int) -> None:
    module = load()
    hidden, weight, targets = example()
    hidden, weight = (x.detach()[:, :3].clone().requires_grad_() for x in (hidden[:5], weight))
    targets = targets[:5]
    for temperature, top_p, chunk in ((1.0, 1.0, 2), (0.7, 0.8, 3), (1.9, 0.3, 100)):

        def scores(hidden: Any, weight: Any, t: Any = temperature, p: Any = top_p, c: Any = chunk):
            return product(
                module, hidden, weight, targets, temperature=t, top_p=p, chunk_size=c
            )  # fmt: skip

        wanted = dense(hidden, weight, targets, temperature, top_p)
        torch.testing.assert_close(scores(hidden, weight), wanted, rtol=1e-12, atol=1e-12)
        assert torch.autograd.gradcheck(scores, (hidden, weight))
        # One of the two alone.
        assert torch.autograd.gradcheck(scores, (hidden, weight.detach()))
        fixed = scores(hidden.detach(), weight)
        assert fixed.grad_fn.next_functions[0][0] is None
        (both,) = torch.autograd.grad(scores(hidden, weight).sum(), weight)
        assert torch.autograd.grad(fixed.sum(), weight)[0].equal(both)


def test_gradients_equal_finite_differences_in_double_precision():
    run_on_ranks(1, differentiate, megatron=True)


def chunk(rank: int, world: int) -> None:
    module = load()
    hidden, weight, targets = example()
    for top_p in (1.0, 0.7):
        results = []
        for size in (1, 2, 10, 11, 12):
            hidden.grad = weight.grad = None
            found = product(module, hidden, weight, targets, chunk_size=size, top_p=top_p)
            found.square().sum().backward()
            results.append((found.detach(), hidden.grad, weight.grad))
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


def test_the_chunk_size_changes_nothing():
    run_on_ranks(1, chunk, megatron=True)


def modes(rank: int, world: int) -> None:
    module = load()
    hidden, weight, targets = example(dtype=torch.float32)
    none, report, train = (
        product(module, hidden, weight, targets, entropy=module.Entropy(e), top_p=0.9)
        for e in ("none", "report", "train")
    )
    with torch.no_grad():
        detached = product(module, hidden, weight, targets, top_p=0.9)
    assert none[0].equal(train[0])
    assert detached.equal(train)
    assert report.equal(train)
    assert not none[1].any()
    (report[1].sum() + none[1].sum()).backward()
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_what_is_done_about_entropy_changes_no_bit_of_the_log_probabilities():
    run_on_ranks(1, modes, megatron=True)


def without(rank: int, world: int) -> None:
    module = load()
    calls: list[Any] = []
    module.within_nucleus = lambda *given: calls.append(given)
    hidden, weight, targets = example()
    found = product(module, hidden, weight, targets)
    assert not calls
    assert found.grad_fn.saved_tensors[-1] is None
    empty = product(module, hidden[:0], weight, targets[:0])
    assert empty.shape == (2, 0)
    empty.sum().backward()
    assert not weight.grad.any()


def test_all_tokens_cost_no_search_and_no_rows_give_no_gradient():
    run_on_ranks(1, without, megatron=True)


@pytest.fixture
def on_gpu() -> Iterator[Any]:
    from slime_megatron.mcore.startup import bootstrap

    bootstrap.load()
    torch.cuda.empty_cache()
    yield load()
    torch.cuda.empty_cache()


def large(tokens: int, vocab: int, hidden: int = 1024) -> tuple[Any, Any, Any]:
    generator = torch.Generator("cuda").manual_seed(0)
    made = {"generator": generator, "device": "cuda", "dtype": torch.bfloat16}
    states = torch.randn(tokens, hidden, **made).requires_grad_()
    weight = (torch.randn(vocab, hidden, **made) / 16).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), generator=generator, device="cuda")
    return states, weight, targets


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_bfloat16_on_a_gpu_equals_float32_computed_from_the_same_logits(on_gpu, top_p):
    vocab = 20011
    hidden, weight, targets = large(300, vocab)
    found = product(
        on_gpu, hidden, weight, targets, vocab_size=vocab, chunk_size=128, temperature=0.8,
        top_p=top_p,
    )  # fmt: skip
    w = torch.randn(300, 2, device="cuda").T
    grads = torch.autograd.grad((found * w).sum(), (hidden, weight))
    # In products of the same shapes, which round alike.
    logits = torch.cat([part @ weight.T for part in hidden.detach().split(128)])
    logits = logits.detach().double().requires_grad_()
    wanted = dense_of(logits, targets, 0.8, top_p)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5)
    (d_logits,) = torch.autograd.grad((wanted * w).sum(), logits)
    expected = (d_logits @ weight.double(), d_logits.T @ hidden.double())
    for grad, exact in zip(grads, expected, strict=True):
        exact = exact.detach()
        assert float((grad - exact).norm() / exact.norm()) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_16384_tokens_of_151936_words_take_less_than_a_gigabyte_and_a_half(on_gpu, top_p):
    vocab = 151_936
    hidden, weight, targets = large(16_384, vocab)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = product(on_gpu, hidden, weight, targets, vocab_size=vocab, top_p=top_p)
    found.mean().backward()
    assert torch.cuda.max_memory_allocated() - before < 1.5e9
    assert torch.isfinite(found).all()
    assert torch.isfinite(weight.grad).all()
