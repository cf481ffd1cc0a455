"""Adam's state in host memory: the steps of one on the GPU, and its memory for others."""

from pathlib import Path
from typing import Any

import numpy as np
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
    "host": (*OFFLOAD, "--overlap-cpu-optimizer-d2h-h2d"),
    "half": (*OFFLOAD, "--optimizer-offload-fraction=0.5"),
    "continued": OFFLOAD,
}


def weights(trainer: Any) -> Any:
    parameters = trainer._state.chunks[0].parameters()
    return torch.cat([p.detach().reshape(-1).cpu().double() for p in parameters]).numpy()


def steps(root: str, kind: str) -> dict[str, Any]:
    """Losses and norms of three steps, weights before and after the first, bytes of the GPU."""
    from slime_core.config.algorithm import PolicyLossConfig
    from slime_core.config.model import ModelConfig
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.mcore.optimizer import host_adam
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    host_adam.PIECE = 1 << 16  # parameters travel in several pieces
    model, checkpoint = Path(root) / "model", Path(root) / "checkpoint"
    config = make_config(
        model,
        *("--bf16", "--lr=1e-3", "--use-distributed-optimizer", *KINDS[kind]),
        model=ModelConfig(hf_checkpoint=str(model), compile_layers=False),
        policy_loss=PolicyLossConfig(loss_type="sft_loss"),
        device="cuda",
    )
    payload = make_payload(make_batch(), ParallelLayout(), config.batch, 0)
    trainer = TrainerRank(config, 0, 1)
    trainer.initialize(
        f"file://{root}/rendezvous-{kind}", checkpoint if kind == "continued" else None
    )
    numbers: list[float] = []
    found: dict[str, Any] = {"numbers": numbers, "start": weights(trainer)}
    for iteration in range(trainer.iteration, 3):
        metrics = trainer.train(iteration, payload)
        numbers += [metrics["train/loss"], metrics["train/grad_norm"]]
        if iteration:
            continue
        found["bytes"], found["after"] = torch.cuda.memory_allocated(), weights(trainer)
        if kind == "host":
            checkpoint.mkdir()
            trainer.save(checkpoint, 0)
        found["host bytes"] = trainer.hold("nothing")
        found["bytes away"] = torch.cuda.memory_allocated()
        trainer.hold("everything")
    trainer.shutdown()
    return found


def test_a_step_on_the_host_is_the_step_on_the_gpu_and_leaves_its_memory(tmp_path: Path) -> None:
    make_qwen3(tmp_path / "model", **SIZES)
    found = {kind: run_alone(steps, str(tmp_path), kind, seconds=120) for kind in KINDS}
    device = found["device"]
    state = 12 * len(device["start"])
    moved = np.linalg.norm(device["after"] - device["start"])
    apart = {
        kind: float(np.linalg.norm(row["after"] - device["after"]) / moved)
        for kind, row in found.items()
        if kind != "continued"
    }
    saved = {k: (device["bytes"] - x["bytes"]) / state for k, x in found.items() if "bytes" in x}
    print({"apart": apart, "of the state not on the GPU": saved})
    for kind in ("host", "half"):
        assert apart[kind] < max(2 * apart["again"], 0.05), apart
        assert found[kind]["numbers"] == pytest.approx(device["numbers"], rel=5e-2), kind
    for kind, each in (("device", 2 + 4 + 12), ("host", 2 + 4), ("half", 2 + 4 + 1)):
        gone = found[kind]["bytes"] - found[kind]["bytes away"]
        assert gone > 0.95 * each * len(device["start"]), (kind, gone)
    assert saved["host"] > 0.95
    assert 0.4 < saved["half"] < 0.9
    assert found["host"]["host bytes"] > state
    assert found["continued"]["numbers"] == pytest.approx(found["host"]["numbers"][2:], rel=1e-2)
