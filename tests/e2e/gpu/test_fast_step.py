"""What makes steps fast on a GPU changes them by no more than bfloat16 rounds."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_alone
from slime_testing.tiny import make_qwen3
from slime_testing.tiny_families import make_family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS = (700, 31, 512, 640, 8, 300)
SIZES = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
LATENT_SIZES = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
"""Of heads for which there are kernels."""


def kernels() -> dict[str, float]:
    """Relative differences of cuDNN on rectangles and FlashAttention from float32, one by one."""
    from slime_megatron.packing.blocks import Blocks
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel

    generator = torch.Generator("cuda").manual_seed(0)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(sum(LENGTHS), heads, 128, device="cuda", generator=generator)

    exact = [draw(heads) for heads in (8, 2, 2)]
    weights = draw(8)

    def causal(q: Any, k: Any, v: Any) -> Any:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def fast(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            return causal(q, k, v)

    def apart(q: Any, k: Any, v: Any) -> Any:
        rows = zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True)
        whole = (causal(*(x.transpose(0, 1)[None] for x in each)) for each in rows)
        return torch.cat([x[0].transpose(0, 1) for x in whole])

    def run(attend: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in exact]
        out = attend(*leaves)
        return [out, *torch.autograd.grad((out.float() * weights).sum(), leaves)]

    blocks = Blocks.of(LENGTHS, torch.device("cuda"))
    wanted = run(apart, torch.float32)
    found = run(lambda q, k, v: blocks.attend(q, k, v, fast), torch.bfloat16)
    names = ("out", "dq", "dk", "dv")
    return {
        name: float((x.float() - y).norm() / y.norm())
        for name, x, y in zip(names, found, wanted, strict=True)
    }


def packed(module: str, function: str) -> dict[str, float]:
    """Relative differences of packed kernels from float32, of sequences and parts of them."""
    from slime_megatron.mcore.layers.kernels import Heads
    from slime_megatron.packing.spans import Varlen, causal_spans

    find = getattr(importlib.import_module(f"slime_megatron.mcore.layers.{module}"), function)
    device = torch.device("cuda")
    cases = {
        "whole": (2, 128, 128, 1, 0),
        "first of two": (2, 128, 128, 2, 0),
        "second of two": (2, 128, 128, 2, 1),
        "latent": (8, 192, 128, 1, 0),
        "small": (2, 64, 64, 1, 0),
    }
    found: dict[str, float] = {}
    for name, (groups, size, value_size, parts, part) in cases.items():
        lengths = [length // 4 * 4 for length in LENGTHS]
        spans = causal_spans(lengths, cp_size=parts, cp_rank=part)
        generator = torch.Generator(device).manual_seed(0)
        rows = (sum(lengths) // parts, sum(lengths), sum(lengths))
        shapes = zip(rows, (8, groups, groups), (size, size, value_size), strict=True)
        exact = [torch.randn(shape, device=device, generator=generator) for shape in shapes]
        slope = torch.randn(rows[0], 8, value_size, device=device, generator=generator)
        heads = Heads(8, groups, size, value_size, torch.bfloat16)
        kernel, varlen = find(heads), Varlen.of(spans, device)
        assert kernel is not None, f"{function} refused {heads}"

        def fast(q: Any, k: Any, v: Any, kernel: Any = kernel, varlen: Varlen = varlen) -> Any:
            if varlen.keys is not None:
                k, v = varlen.keys.of(k), varlen.keys.of(v)
            return kernel(q, k, v, varlen, 0.1)

        outcome = zip(
            with_gradients(fast, exact, slope, torch.bfloat16),
            with_gradients(by_definition(spans, 0.1), exact, slope, torch.float32),
            strict=True,
        )
        found |= {f"{name} {i}": relative(x, y) for i, (x, y) in enumerate(outcome)}
    return found


def by_definition(spans: Any, scale: float) -> Any:
    """Softmax over each span's keys up to the query, written out."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*q.shape[:2], v.shape[-1], device=q.device)
        share = q.shape[1] // k.shape[1]
        for queries, keys in zip(spans.queries, spans.keys, strict=True):
            rows, columns = queries.to(q.device), keys.to(q.device)
            some = k[columns].repeat_interleave(share, 1), v[columns].repeat_interleave(share, 1)
            scores = torch.einsum("qhd,khd->hqk", q[rows], some[0]) * scale
            first = len(columns) - len(rows)
            later = torch.arange(len(columns), device=q.device) > (
                first + torch.arange(len(rows), device=q.device)[:, None]
            )
            shares = scores.masked_fill(later, float("-inf")).softmax(-1)
            out = out.index_copy(0, rows, torch.einsum("hqk,khd->qhd", shares, some[1]))
        return out

    return attend


def with_gradients(
    attend: Any, exact: list[torch.Tensor], slope: torch.Tensor, dtype: torch.dtype
) -> list[torch.Tensor]:
    leaves = [x.to(dtype).requires_grad_() for x in exact]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))]


def steps(root: str) -> dict[str, list[float]]:
    """Losses and gradient norms: compiled, not compiled, and continued from a checkpoint."""
    from slime_core.config.algorithm import PolicyLossConfig
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    config = make_config(
        Path(root) / "model",
        "--bf16",
        "--use-distributed-optimizer",
        policy_loss=PolicyLossConfig(loss_type="sft_loss"),
        device="cuda",
    )
    payload = make_payload(make_batch(), ParallelLayout(), config.batch, 0)
    found: dict[str, list[float]] = {}

    def train(name: str, compiled: bool, first: int, load: Path | None = None) -> Any:
        model = replace(config.model, compile_layers=compiled)
        trainer = TrainerRank(replace(config, model=model), 0, 1)
        trainer.initialize(f"file://{root}/rendezvous-{name}", load)
        found[name] = []
        for iteration in range(first, 4):
            metrics = trainer.train(iteration, payload)
            found[name] += [metrics["train/loss"], metrics["train/grad_norm"]]
            if name == "compiled" and iteration == 1:
                trainer.save(Path(root) / "checkpoint", iteration)
        return trainer

    (Path(root) / "checkpoint").mkdir()
    for name, compiled in (("compiled", True), ("not compiled", False)):
        train(name, compiled, 0)
    train("continued", True, 2, Path(root) / "checkpoint")
    return found


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def own_products() -> dict[str, float]:
    """Relative differences from double precision: gates, experts with and without rows."""
    from slime_megatron.mcore.experts.grouped_products import GatedGroupedProduct, GroupedProduct
    from slime_megatron.mcore.products.gate_kernel import gate_backward
    from slime_megatron.mcore.products.mlp_gate import gate

    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", generator=generator).bfloat16()

    given, grad = draw(300, 2 * 1000), draw(300, 1000)
    leaf = given.double().requires_grad_()
    out = gate(leaf)
    (wanted,) = torch.autograd.grad(out, leaf, grad.double())
    to_given, gated = gate_backward(given, grad)
    found = {"gate": relative(to_given, wanted), "gated": relative(gated, out.detach())}

    counts = (0, 17, 300, 0, 64)
    x, shares = draw(sum(counts), 64), torch.rand(sum(counts), device="cuda", generator=generator)
    first, second = [draw(256, 64) for _ in counts], [draw(64, 128) for _ in counts]
    ends = torch.tensor(counts, device="cuda").cumsum(0).to(torch.int32)
    slope = draw(sum(counts), 64)
    leaves = [t.requires_grad_() for t in (x, shares, *first, *second)]
    opened = GroupedProduct.apply(x, ends, *first)
    out = GatedGroupedProduct.apply(opened, shares, ends, *second)
    grads = torch.autograd.grad(out, leaves, slope)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    parts = (exact[0].split(counts), exact[1].split(counts), exact[2:7], exact[7:])
    one_by_one = torch.cat(
        [
            gate(rows @ w.t()) * share[:, None] @ v.t()
            for rows, share, w, v in zip(*parts, strict=True)
        ]
    )
    wanteds = torch.autograd.grad(one_by_one, exact, slope.double())
    found["experts"] = relative(out.detach(), one_by_one.detach())
    found["rows"] = relative(grads[0], wanteds[0])
    found["shares"] = relative(grads[1], wanteds[1])
    for name, some in (("first", slice(2, 7)), ("second", slice(7, 12))):
        found[name] = relative(torch.stack(grads[some]), torch.stack(wanteds[some]))
    sums = torch.zeros(5, 256, 64, device="cuda")
    for weight, total in zip(first, sums, strict=True):
        weight.gradient_sum = total
    torch.autograd.grad(
        GroupedProduct.apply(x, ends, *first), first, draw(sum(counts), 256) * 0 + 1
    )
    again = torch.autograd.grad(
        torch.cat([r @ w.t() for r, w in zip(parts[0], parts[2], strict=True)]).sum(), exact[2:7]
    )
    found["sums"] = relative(sums, torch.stack(again))
    return found


def kept_logits() -> dict[str, float]:
    """How log-probabilities and gradients differ when logits are kept for going back."""
    from slime_megatron.mcore.startup import bootstrap

    bootstrap.load()
    from slime_megatron.mcore.logprobs.scoring import Scoring, VocabSlice
    from slime_megatron.mcore.logprobs.target_log_probs import target_log_probs

    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(500, 256, device="cuda", generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(3000, 256, device="cuda", generator=generator).bfloat16()
    weight = weight.requires_grad_()
    targets = torch.randint(0, 3000, (500,), device="cuda", generator=generator)
    slopes = torch.randn(500, device="cuda", generator=generator)

    def run(keep: bool) -> list[torch.Tensor]:
        scoring = Scoring(targets, targets, 3000, chunk_size=128, keep=keep)
        out = target_log_probs(hidden, weight, scoring, VocabSlice(0, 3000, None))[0]
        return [out.detach(), *torch.autograd.grad((out * slopes).sum(), (hidden, weight))]

    pairs = zip(("log-probabilities", "hidden", "weight"), run(True), run(False), strict=True)
    return {name: relative(kept, again) for name, kept, again in pairs}


def steps_with(model: str, *flags: str) -> list[float]:
    """Losses and gradient norms of three steps."""
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    flags = ("--bf16", "--use-distributed-optimizer", *flags)
    config = make_config(Path(model), *flags, device="cuda")
    payload = make_payload(make_batch(), ParallelLayout(), config.batch, 0)
    trainer = TrainerRank(config, 0, 1)
    trainer.initialize(f"file://{model}/rendezvous-{'-'.join(flags)}")
    metrics = [trainer.train(i, payload) for i in range(3)]
    return [m[name] for m in metrics for name in ("train/loss", "train/grad_norm")]


def test_cudnn_on_rectangles_is_as_exact_as_bfloat16() -> None:
    found = run_alone(kernels)
    assert max(found.values()) < 1e-2, found


@pytest.mark.parametrize(
    ("package", "module", "function"),
    [
        ("flash_attn.cute", "flash", "flash_attention"),
        ("transformer_engine", "packed_cudnn", "packed_cudnn"),
    ],
)
def test_packed_kernels_are_as_exact_as_bfloat16(package: str, module: str, function: str) -> None:
    pytest.importorskip(package)
    found = run_alone(packed, module, function)
    assert max(found.values()) < 1e-2, found


def test_compiled_layers_train_as_others_do_and_continue(tmp_path: Path) -> None:
    make_qwen3(tmp_path / "model", **SIZES)
    found = run_alone(steps, str(tmp_path))
    assert found["compiled"] == pytest.approx(found["not compiled"], rel=5e-2)
    assert found["continued"] == pytest.approx(found["compiled"][4:], rel=1e-3)


def test_gates_and_experts_are_as_exact_as_bfloat16() -> None:
    found = run_alone(own_products)
    assert max(found.values()) < 1e-2, found


def test_kept_logits_give_the_same_bits_and_gradients() -> None:
    found = run_alone(kept_logits)
    assert found.pop("log-probabilities") == 0
    assert max(found.values()) < 1e-2, found


def test_experts_together_train_as_one_by_one(tmp_path: Path) -> None:
    model = str(make_family(tmp_path / "moe", "qwen3_moe"))
    together = run_alone(steps_with, model, "--moe-grouped-gemm")
    one_by_one = run_alone(steps_with, model)
    assert together[:2] == pytest.approx(one_by_one[:2], rel=3e-2)
    assert together == pytest.approx(one_by_one, rel=0.1)


@pytest.mark.parametrize(("family", "sizes"), [("qwen3", SIZES), ("deepseek_v3", LATENT_SIZES)])
def test_attention_backends_train_as_the_plain_one_does(
    tmp_path: Path, family: str, sizes: dict[str, int]
) -> None:
    model = str(make_family(tmp_path / family, family, **sizes))
    plain = run_alone(steps_with, model, "--attention-backend", "unfused")
    for backend in ("fused", "flash", "auto"):
        found = run_alone(steps_with, model, "--attention-backend", backend)
        assert found == pytest.approx(plain, rel=5e-2), backend
