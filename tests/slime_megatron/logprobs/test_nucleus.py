"""Log-probabilities of nucleus sampling against sorting, and by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slime_testing.ranks import run_on_ranks
from slime_testing.scoring_case import kept, load, product

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


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
