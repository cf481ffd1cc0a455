"""Chunked, vocabulary-parallel scoring against plain log-softmax."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slime_testing.ranks import run_on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VOCAB, HIDDEN, ROWS = 37, 6, 11


def kept(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Sort and add up until top_p is reached; all as probable as the last one, too."""
    ordered = probs.sort(-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    least = torch.where(before < top_p, ordered, 1.0).amin(-1, keepdim=True)
    return probs >= least


def dense(hidden: Any, weight: Any, targets: Any, temperature: float, top_p: float = 1.0) -> Any:
    return dense_of(hidden @ weight[:VOCAB].T, targets, temperature, top_p)


def dense_of(logits: Any, targets: Any, temperature: float, top_p: float) -> Any:
    """Log-probabilities and entropies from whole logits."""
    scores = (logits / temperature).log_softmax(-1)
    entropy = -(scores.exp() * scores).sum(-1)
    if top_p < 1:
        nucleus = kept(scores.detach().exp(), top_p).scatter(-1, targets[:, None], True)
        scores = scores.masked_fill(~nucleus, -torch.inf).log_softmax(-1)
    return torch.stack([scores.gather(-1, targets[:, None])[:, 0], entropy])


def product(module: Any, hidden: Any, weight: Any, targets: Any, **given: Any) -> Any:
    """The whole vocabulary on this rank."""
    size = given.pop("vocab_size", VOCAB)
    given.setdefault("entropy", module.Entropy.TRAIN)
    scoring = module.Scoring(rows=torch.arange(0), targets=targets, vocab_size=size, **given)
    return module.target_log_probs(hidden, weight, scoring, module.VocabSlice(0, size, None))


def load() -> Any:
    """The module, and with it Megatron, which only the processes of ranks import."""
    from slime_megatron.mcore import logprobs

    return logprobs


def example(padded: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(padded, HIDDEN, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, VOCAB, (ROWS,), generator=generator)


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


def reduce_on_rank(rank: int, world: int) -> tuple[float, float]:
    """Value and gradient of sum_r c_r (sum_s x_s)^2 at x = rank + 1, c = rank + 1."""
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
    cases = [
        Case(38, 1.0, 4), Case(38, 0.6, 1000), Case(64, 1.7, 3), Case(80, 1.0, 11),
        Case(38, 1.0, 4, top_p=0.9), Case(38, 0.6, 1000, top_p=0.5), Case(64, 1.7, 3, top_p=0.95),
        Case(80, 1.0, 11, top_p=0.2),
    ]  # fmt: skip
    for worst, (total, grad) in run_on_ranks(2, both, cases, megatron=True):
        assert max(worst) < 1e-5, worst
        # d/dx of 1 (x1 + x2)^2 + 2 (x1 + x2)^2 at x1 + x2 = 3.
        assert (total, grad) == (3.0, 18.0)


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


def by_hand(rank: int, world: int) -> None:
    module = load()
    logits = torch.tensor([0.5, 0.3, 0.2]).double().log().expand(3, 3).requires_grad_()
    found = product(
        module, logits, torch.eye(3).double(), torch.arange(3), vocab_size=3, top_p=0.6
    )  # fmt: skip
    # 0.5 + 0.3 reach 0.6; the third token is kept only where it is the target.
    wanted = torch.tensor([0.5 / 0.8, 0.3 / 0.8, 0.2]).double().log()
    torch.testing.assert_close(found[0].detach(), wanted)
    entropy = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    torch.testing.assert_close(found[1].detach(), torch.full((3,), entropy).double())
    grads = torch.autograd.grad(found[0].sum(), logits)[0]
    wanted = [[1 - 0.625, -0.375, 0], [-0.625, 1 - 0.375, 0], [-0.5, -0.3, 1 - 0.2]]
    torch.testing.assert_close(grads, torch.tensor(wanted).double())


def test_the_nucleus_of_three_tokens_is_right_by_hand_with_the_target_in_and_out():
    run_on_ranks(1, by_hand, megatron=True)


def draw_logits(draw: Any) -> torch.Tensor:
    """Ties, peaks, uniform rows and large offsets, all of which every type holds exactly."""
    size = draw(st.integers(1, 40))
    grid = st.integers(-40, 40).map(lambda n: n / 8)
    shapes = {
        "random": st.lists(grid, min_size=size, max_size=size),
        "tied": st.lists(st.sampled_from([-1.0, 0.0, 1.5]), min_size=size, max_size=size),
        "uniform": grid.map(lambda x: [x] * size),
        "peaked": st.integers(0, size - 1).map(lambda i: [30.0 * (j == i) for j in range(size)]),
    }
    row = draw(shapes[draw(st.sampled_from(sorted(shapes)))])
    return torch.tensor([row] * size, dtype=torch.float64)


@st.composite
def nuclei(draw: Any) -> tuple[torch.Tensor, float, float]:
    """(logits with one row for each target, top_p, temperature) without a close call."""
    logits = draw_logits(draw)
    top_p = draw(st.floats(0.001, 0.999))
    temperature = draw(st.sampled_from([1.0, 0.5, 2.0, 0.7]))
    reached = (logits[0] / temperature).softmax(-1).sort(descending=True).values.cumsum(-1)
    assume(float((reached - top_p).abs().min()) > 1e-4)
    return logits, top_p, temperature


def nucleus(rank: int, world: int) -> None:
    module = load()

    @settings(deadline=None, database=None, max_examples=150)
    @given(case=nuclei(), dtype=st.sampled_from(["float64", "float32", "float16", "bfloat16"]))
    def check(case: Any, dtype: str) -> None:
        exact, top_p, temperature = case
        size = len(exact)
        targets, number = torch.arange(size), getattr(torch, dtype)
        scores = (exact / temperature).log_softmax(-1)
        inside = kept(scores.exp(), top_p)
        inside |= torch.eye(size, dtype=torch.bool)
        q = scores.masked_fill(~inside, -torch.inf).log_softmax(-1)
        logits = exact.to(number).requires_grad_()
        found = product(
            module, logits, torch.eye(size, dtype=number), targets, vocab_size=size,
            temperature=temperature, top_p=top_p, chunk_size=7,
        )  # fmt: skip
        close = {"float64": 1e-9, "float32": 1e-5}.get(dtype, 1e-4)
        torch.testing.assert_close(found[0].double(), q.diag(), rtol=0, atol=close)
        (grad,) = torch.autograd.grad(found[0].sum() * temperature, logits)
        wanted = torch.eye(size) - q.exp()
        torch.testing.assert_close(
            grad.double(), wanted, rtol=0.01 if close == 1e-4 else 0, atol=close
        )

    check()


def test_the_nucleus_is_that_of_sorting_for_ties_peaks_uniform_rows_and_any_target():
    run_on_ranks(1, nucleus, megatron=True)


def without(rank: int, world: int) -> None:
    module = load()
    calls: list[Any] = []
    module._restrict = lambda *given: calls.append(given)
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


def interpreted(rank: int, world: int) -> None:
    from slime_megatron.mcore.logprob_kernels import KernelRows

    module = load()
    hidden, _, targets = example(dtype=torch.float32)
    for dtype, top_p, size in (
        (torch.float32, 1.0, VOCAB), (torch.float32, 0.8, VOCAB), (torch.bfloat16, 0.8, 5000)
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(5)
        wide = torch.randn(size, HIDDEN, generator=generator).to(dtype)
        scoring = module.Scoring(
            rows=targets, targets=targets, vocab_size=size, temperature=0.7, top_p=top_p,
            entropy=module.Entropy.TRAIN,
        )  # fmt: skip
        logits = hidden.detach().to(dtype) @ wide.T
        column = targets.clone()
        column[::3] = -1
        slopes = module.Slopes(
            *torch.randn(5, ROWS, generator=generator),
            None if top_p == 1 else logits[:, 3].float().contiguous(),
        )
        results: list[list[Any]] = []
        for make in (
            lambda s=scoring, x=logits: module.TensorRows(x.clone(), torch.empty(x.shape), s),
            lambda s=scoring, x=logits: KernelRows(x.clone(), s.scale),
        ):
            rows = make()
            sums = rows.sums(column)
            thresholds = logits[:, :3].sort(-1).values.T
            tried = (thresholds, thresholds[:1]) if top_p < 1 else ()
            masses = [rows.masses(t, sums[0]) for t in tried]
            results.append([sums, *masses, make().gradient(column, slopes)])
        atol = 1e-5 if dtype == torch.float32 else 1e-2
        for wanted, found in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted, rtol=atol, atol=atol)
    # All of it, with the kernels in the place of tensor operations.
    hidden, weight, targets = example(dtype=torch.float32)
    for top_p in (1.0, 0.6):
        given = {"temperature": 0.7, "top_p": top_p, "chunk_size": 4}
        wanted = torch.autograd.grad(
            product(module, hidden, weight, targets, **given).square().sum(), (hidden, weight)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module._Room, "rows", lambda r, x: KernelRows(x, r.scoring.scale))
            found = torch.autograd.grad(
                product(module, hidden, weight, targets, **given).square().sum(), (hidden, weight)
            )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_gpu_kernels_compute_what_tensor_operations_do(monkeypatch):
    # Triton then runs them element by element on the CPU.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run_on_ranks(1, interpreted)


def compiled(rank: int, world: int) -> None:
    import triton
    from slime_megatron.mcore import logprob_kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    numbers = {"width": "i32", "stride": "i32", "rows": "i32", "scale": "fp32", "column": "*i64"}
    for kernel, constants in (
        (logprob_kernels._sums, {}),
        (logprob_kernels._masses, {"COUNT": 3}),
        (logprob_kernels._gradient, {"SPREAD": True, "NUCLEUS": True}),
    ):
        names, fixed = kernel.arg_names, {**constants, "BLOCK": 4096}
        kinds = {"logits": "*bf16", **numbers, **dict.fromkeys(fixed, "constexpr")}
        source = ASTSource(
            kernel,
            {name: kinds.get(name, "*fp32") for name in names},
            {(names.index(name),): value for name, value in fixed.items()},
        )
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def test_the_gpu_kernels_compile_for_hopper_where_no_gpu_is(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run_on_ranks(1, compiled)


@pytest.fixture
def on_gpu() -> Iterator[Any]:
    from slime_megatron.mcore import bootstrap

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
