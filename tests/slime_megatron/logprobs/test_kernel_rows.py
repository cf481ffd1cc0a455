"""The passes over logits on a GPU against those by tensor operations, where no GPU is."""

from typing import Any

import pytest
import torch
from slime_testing.ranks import run_on_ranks
from slime_testing.scoring_case import HIDDEN, ROWS, VOCAB, example, load, product

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def interpreted(rank: int, world: int) -> None:
    from slime_megatron.mcore.logprobs.kernel_rows import KernelRows
    from slime_megatron.mcore.logprobs.tensor_rows import TensorRows

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
            lambda s=scoring, x=logits: TensorRows(x.clone(), torch.empty(x.shape), s),
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
            patch.setattr(module.LogitMemory, "rows", lambda r, x: KernelRows(x, r.scoring.scale))
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
    from slime_megatron.mcore.logprobs import kernel_rows
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    numbers = {"width": "i32", "stride": "i32", "rows": "i32", "scale": "fp32", "column": "*i64"}
    for kernel, constants in (
        (kernel_rows._sums, {}),
        (kernel_rows._masses, {"COUNT": 3}),
        (kernel_rows._gradient, {"SPREAD": True, "NUCLEUS": True}),
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
