"""Experts multiplied together give what they give one by one."""

from pathlib import Path

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


def steps(rank: int, world: int, directory: str) -> dict[str, list[float]]:
    """Losses and gradient norms of three iterations, expert by expert, grouped, and fused."""
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.mcore.grouped_experts import GroupedExperts
    from slime_megatron.mcore.weight_gradients import fuse_weight_gradients
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    found: dict[str, list[float]] = {}
    for way in ("one by one", "grouped", "fused"):
        flags = () if way == "one by one" else ("--moe-grouped-gemm",)
        config = make_config(Path(directory), "--use-distributed-optimizer", *flags)
        trainer = TrainerRank(config, rank, world)
        trainer.initialize()
        chunks = trainer._state.chunks
        modules = [module for chunk in chunks for module in chunk.modules()]
        assert any(isinstance(m, GroupedExperts) for m in modules) == bool(flags)
        if way == "fused":
            fuse_weight_gradients(chunks)
        found[way] = []
        for i in range(3):
            payload = make_payload(make_batch(seed=i), ParallelLayout(), config.batch, rank)
            metrics = trainer.train(i, payload)
            found[way] += [metrics["train/loss"], metrics["train/grad_norm"]]
    return found


def test_products_and_their_gradients_are_those_of_each_expert() -> None:
    assert run_on_ranks(1, products, megatron=True)[0]


def test_a_step_is_the_same_as_expert_by_expert(tmp_path: Path) -> None:
    model = make_family(tmp_path, "qwen3_moe")
    found = run_on_ranks(1, steps, str(model), megatron=True)[0]
    assert found["grouped"] == pytest.approx(found["one by one"], rel=1e-4)
    assert found["fused"] == pytest.approx(found["one by one"], rel=1e-4)
