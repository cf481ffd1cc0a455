"""Adam's state in host memory: the steps of one on the GPU, and its memory for others."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_alone
from slime_testing.tiny import make_qwen3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
OFFLOAD = ("--optimizer-cpu-offload", "--use-precision-aware-optimizer")
KINDS: dict[str, tuple[str, ...]] = {
    "device": (),
    "again": (),
    "host": OFFLOAD,
    "overlapped": (*OFFLOAD, "--overlap-cpu-optimizer-d2h-h2d"),
    "half": (*OFFLOAD, "--optimizer-offload-fraction=0.5"),
    "continued": OFFLOAD,
}


def weights(trainer: Any) -> torch.Tensor:
    parameters = trainer._state.chunks[0].parameters()
    return torch.cat([p.detach().reshape(-1).cpu().double() for p in parameters])


def steps(root: str) -> dict[str, dict[str, Any]]:
    """Of each kind: losses and norms of three steps, what one changes, and bytes of the GPU."""
    from slime_core.config.algorithm import PolicyLossConfig
    from slime_core.config.model import ModelConfig
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.mcore import host_adam
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    host_adam.PIECE = 1 << 16  # parameters travel in several pieces
    checkpoint = Path(root) / "checkpoint"
    checkpoint.mkdir()
    found: dict[str, dict[str, Any]] = {}
    start = wanted = torch.zeros(0)
    for kind, flags in KINDS.items():
        config = make_config(
            Path(root) / "model",
            *("--bf16", "--lr=1e-3", "--use-distributed-optimizer", *flags),
            model=ModelConfig(hf_checkpoint=str(Path(root) / "model"), compile_layers=False),
            policy_loss=PolicyLossConfig(loss_type="sft_loss"),
            device="cuda",
        )
        payload = make_payload(make_batch(), ParallelLayout(), config.batch, 0)
        gc.collect()
        others = torch.cuda.memory_allocated()
        trainer = TrainerRank(config, 0, 1)
        load = checkpoint if kind == "continued" else None
        trainer.initialize(f"file://{root}/rendezvous-{kind}", load)
        if kind == "device":
            start = weights(trainer)
        numbers: list[float] = []
        row: dict[str, Any] = {"numbers": numbers}
        for iteration in range(1 if load else 0, 3):
            metrics = trainer.train(iteration, payload)
            numbers += [metrics["train/loss"], metrics["train/grad_norm"]]
            if iteration:
                continue
            row["bytes"] = torch.cuda.memory_allocated() - others
            after = weights(trainer)
            wanted = after if kind == "device" else wanted
            row["apart"] = float((after - wanted).norm() / (start - wanted).norm())
            if kind == "host":
                trainer.save(checkpoint, 0)
            if flags:
                row["host bytes"] = trainer.hold("nothing")
                row["bytes away"] = torch.cuda.memory_allocated() - others
                trainer.hold("everything")
        found[kind] = {**row, "parameters": len(start)}
        trainer.shutdown()
        del trainer
    return found


def test_a_step_on_the_host_is_the_step_on_the_gpu_and_leaves_its_memory(tmp_path: Path) -> None:
    make_qwen3(tmp_path / "model", **SIZES)
    found = run_alone(steps, str(tmp_path), seconds=300)
    print({kind: {n: x for n, x in row.items() if n != "numbers"} for kind, row in found.items()})
    noise = found["again"].get("apart", 0.0)
    device, state = found["device"], 12 * found["device"]["parameters"]
    for kind in ("host", "overlapped", "half"):
        row = found[kind]
        assert row["apart"] < max(2 * noise, 0.05), (kind, row["apart"], noise)
        assert row["numbers"] == pytest.approx(device["numbers"], rel=5e-2), kind
        assert row["bytes away"] < row["bytes"], kind
    for kind in ("host", "overlapped"):
        assert device["bytes"] - found[kind]["bytes"] > 0.9 * state, kind
        assert found[kind]["host bytes"] > state, kind
    assert 0.3 * state < device["bytes"] - found["half"]["bytes"] < 0.9 * state
    assert found["continued"]["numbers"] == pytest.approx(found["host"]["numbers"][2:], rel=1e-2)
