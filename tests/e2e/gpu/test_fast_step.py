"""What makes steps fast on a GPU changes them by no more than bfloat16 rounds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_alone
from slime_testing.tiny import make_qwen3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS = (700, 31, 512, 640, 8, 300)
SIZES = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}


def kernels() -> dict[str, float]:
    """Relative differences of cuDNN on rectangles and FlashAttention from float32, one by one."""
    from slime_megatron.blocks import Blocks
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


def test_cudnn_on_rectangles_is_as_exact_as_bfloat16() -> None:
    found = run_alone(kernels)
    assert max(found.values()) < 1e-2, found


def test_compiled_layers_train_as_others_do_and_continue(tmp_path: Path) -> None:
    make_qwen3(tmp_path / "model", **SIZES)
    found = run_alone(steps, str(tmp_path))
    assert found["compiled"] == pytest.approx(found["not compiled"], rel=5e-2)
    assert found["continued"] == pytest.approx(found["compiled"][4:], rel=1e-3)
