"""Experts multiplied together give what they give one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COUNTS = (3, 0, 2, 4)


def products(rank: int, world: int) -> bool:
    """Gradients by finite differences, with an expert that no row goes to."""
    from slime_megatron.mcore.grouped_experts import GroupedProduct

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(COUNTS), 3, dtype=torch.double, generator=generator).requires_grad_()
    weights = [
        torch.randn(5, 3, dtype=torch.double, generator=generator).requires_grad_() for _ in COUNTS
    ]
    ends = torch.tensor(COUNTS).cumsum(0).to(torch.int32)
    found = GroupedProduct.apply(x, COUNTS, ends, *weights)
    wanted = [rows @ w.t() for rows, w in zip(x.split(COUNTS), weights, strict=True)]
    assert torch.allclose(found, torch.cat(wanted))

    def run(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return GroupedProduct.apply(x, COUNTS, ends, *weights)

    return torch.autograd.gradcheck(run, (x, *weights))


def lie_together(layer: Any, name: str) -> bool:
    """Whether a tensor of every weight is found where it lies, each expert's in turn."""
    from slime_megatron.mcore.grouped_experts import in_place

    for half in ("linear_fc1", "linear_fc2"):
        found = [getattr(getattr(e, half).weight, name) for e in layer.local_experts]
        view = in_place(found)
        if view is None or not all(map(torch.equal, view, found)):
            return False
    return True


def places(rank: int, world: int) -> list[bool]:
    """Whether tensors are found in place: in a row, with gaps, unevenly, backwards, apart."""
    from slime_megatron.mcore.grouped_experts import in_place

    memory = torch.arange(60.0)
    row = list(memory[:24].view(3, 2, 4))
    gaps = [memory[12 * i : 12 * i + 8].view(2, 4) for i in range(4)]
    uneven = [row[0], row[1], memory[40:48].view(2, 4)]
    overlapping = [memory[4 * i : 4 * i + 8].view(2, 4) for i in range(3)]
    apart = [x.clone() for x in row]
    cases = (row, gaps, uneven, row[::-1], overlapping, apart, row[:1])
    views = [in_place(case) for case in cases]
    for view, case in zip(views, cases, strict=True):
        assert view is None or torch.equal(view, torch.stack(case))
    return [view is not None for view in views]


def steps(rank: int, world: int, directory: str) -> dict[str, list[float]]:
    """Losses and gradient norms of three iterations, expert by expert and in other ways."""
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.mcore.compiled import compile_layers
    from slime_megatron.mcore.grouped_experts import GroupedExperts
    from slime_megatron.mcore.weight_gradients import fuse_weight_gradients
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    found: dict[str, list[float]] = {}
    for way in ("one by one", "grouped", "fused", "compiled"):
        flags = () if way == "one by one" else ("--moe-grouped-gemm",)
        config = make_config(Path(directory), "--use-distributed-optimizer", *flags)
        trainer = TrainerRank(config, rank, world)
        trainer.initialize()
        chunks = trainer._state.chunks
        modules = [module for chunk in chunks for module in chunk.modules()]
        assert any(isinstance(m, GroupedExperts) for m in modules) == bool(flags)
        layers = [m for m in modules if isinstance(m, GroupedExperts)]
        assert all(lie_together(m, name) for m in layers for name in ("data", "main_grad"))
        if way in ("fused", "compiled"):
            fuse_weight_gradients(chunks)
            assert all(lie_together(layer, "gradient_sum") for layer in layers)
        if way == "compiled":
            assert compile_layers(chunks, backend="aot_eager") == 2
        found[way] = []
        for i in range(3):
            payload = make_payload(make_batch(seed=i), ParallelLayout(), config.batch, rank)
            metrics = trainer.train(i, payload)
            found[way] += [metrics["train/loss"], metrics["train/grad_norm"]]
    return found


def test_weights_are_read_where_they_lie_only_if_they_lie_at_equal_distances() -> None:
    found = run_on_ranks(1, places, megatron=True)[0]
    assert found == [True, True, False, False, False, False, False]


def test_products_and_their_gradients_are_those_of_each_expert() -> None:
    assert run_on_ranks(1, products, megatron=True)[0]


def test_a_step_is_the_same_as_expert_by_expert(tmp_path: Path) -> None:
    model = make_family(tmp_path, "qwen3_moe")
    found = run_on_ranks(1, steps, str(model), megatron=True)[0]
    wanted = found.pop("one by one")
    for way, values in found.items():
        assert values == pytest.approx(wanted, rel=1e-4), way
