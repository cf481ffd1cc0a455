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
    from slime_megatron.mcore.experts.grouped_products import GatedGroupedProduct, GroupedProduct

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.double, generator=generator).requires_grad_()

    ends = torch.tensor(COUNTS).cumsum(0).to(torch.int32)
    x, shares = draw(sum(COUNTS), 3), draw(sum(COUNTS))
    first, second = [draw(10, 3) for _ in COUNTS], [draw(3, 5) for _ in COUNTS]

    def run(x: torch.Tensor, shares: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        opened = GroupedProduct.apply(x, ends, *weights[: len(COUNTS)])
        return GatedGroupedProduct.apply(opened, shares, ends, *weights[len(COUNTS) :])

    wanted: list[torch.Tensor] = []
    for rows, share, one, two in zip(
        x.split(COUNTS), shares.split(COUNTS), first, second, strict=True
    ):
        left, right = (rows @ one.t()).chunk(2, -1)
        wanted.append(left * left.sigmoid() * right * share[:, None] @ two.t())
    assert torch.allclose(run(x, shares, *first, *second), torch.cat(wanted))
    return torch.autograd.gradcheck(run, (x, shares, *first, *second))


def interpreted(rank: int, world: int) -> None:
    """The kernels next to autograd's gradients, on sizes that fill no block and on several."""
    from slime_megatron.mcore.experts import expert_kernels

    generator = torch.Generator().manual_seed(0)
    for width, dtype in ((5, torch.float32), (1500, torch.float32), (40, torch.bfloat16)):
        opened = torch.randn(3, 2 * width, generator=generator).to(dtype)
        shares = torch.rand(3, generator=generator)
        grad = torch.randn(3, width, generator=generator).to(dtype)
        leaves = [x.double().requires_grad_() for x in (opened, shares)]
        first, second = leaves[0].chunk(2, -1)
        exact = first * first.sigmoid() * second * leaves[1][:, None]
        wanted = (exact, *torch.autograd.grad(exact, leaves, grad.double()), exact)
        found = (
            expert_kernels.gate(opened, shares),
            *expert_kernels.gate_backward(opened, shares, grad),
        )
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        for mine, exactly in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine.double(), exactly, rtol=tolerance, atol=tolerance)
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    memory = torch.arange(3 * 80.0)
    sums = memory.as_strided((3, 6, 9), (80, 9, 1))
    found = torch.ones(3, 6, 9, dtype=torch.bfloat16)
    wanted = memory.clone()
    wanted[:54] += 1
    wanted[160:214] += 1
    found[1] = torch.nan  # what stands for an expert without rows is not read
    expert_kernels.add_to_sums(sums, found, ends)
    assert torch.equal(memory, wanted)


def compiled(rank: int, world: int) -> None:
    import triton
    from slime_megatron.mcore.experts import expert_kernels
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"shares": "*fp32", "to_shares": "*fp32", "sums": "*fp32", "ends": "*i32"}
    kinds |= dict.fromkeys(("width", "size", "distance"), "i32")
    for kernel in (
        expert_kernels._gate,
        expert_kernels._gate_backward,
        expert_kernels._add_to_sums,
    ):
        source = ASTSource(kernel, {name: kinds.get(name, "*bf16") for name in kernel.arg_names})
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def lie_together(layer: Any, name: str) -> bool:
    """Whether a tensor of every weight is found where it lies, each expert's in turn."""
    from slime_megatron.mcore.experts.grouped_products import in_place

    for half in ("linear_fc1", "linear_fc2"):
        found = [getattr(getattr(e, half).weight, name) for e in layer.local_experts]
        view = in_place(found)
        if view is None or not all(map(torch.equal, view, found)):
            return False
    return True


def places(rank: int, world: int) -> list[bool]:
    """Whether tensors are found in place: in a row, with gaps, unevenly, backwards, apart."""
    from slime_megatron.mcore.experts.grouped_products import in_place

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
    from slime_megatron.mcore.experts.grouped_experts import GroupedExperts
    from slime_megatron.mcore.layers.compiled import compile_layers
    from slime_megatron.mcore.products.weight_gradients import fuse_weight_gradients
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


def test_the_gpu_kernels_compute_what_tensor_operations_do(monkeypatch: Any) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run_on_ranks(1, interpreted)


def test_the_gpu_kernels_compile_for_hopper_where_no_gpu_is(
    monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    run_on_ranks(1, compiled)


def test_a_step_is_the_same_as_expert_by_expert(tmp_path: Path) -> None:
    model = make_family(tmp_path, "qwen3_moe")
    found = run_on_ranks(1, steps, str(model), megatron=True)[0]
    wanted = found.pop("one by one")
    for way, values in found.items():
        assert values == pytest.approx(wanted, rel=1e-4), way
