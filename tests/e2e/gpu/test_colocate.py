"""Trainer and engine in turns on one GPU: bit for bit, and without growth."""

import time
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

SIZES = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}


def steps(root: str) -> list[list[Any]]:
    """Numbers and weights after four iterations: never moved, and moved after each."""
    from slime_core.config.algorithm import PolicyLossConfig
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    config = make_config(
        Path(root) / "model",
        "--bf16",
        "--use-distributed-optimizer",
        "--deterministic-mode",  # attention's gradients are added in no certain order otherwise
        policy_loss=PolicyLossConfig(loss_type="sft_loss"),
        device="cuda",
    )
    payload = make_payload(make_batch(), ParallelLayout(), config.batch, 0)
    found: list[list[Any]] = []
    for moves in (False, True):
        others = torch.cuda.memory_allocated()
        trainer = TrainerRank(config, 0, 1)
        trainer.initialize(f"file://{root}/rendezvous-{moves}")
        numbers: list[Any] = []
        for iteration in range(4):
            metrics = trainer.train(iteration, payload)
            numbers.append({n: x for n, x in metrics.items() if not n.startswith("perf/")})
            if moves:
                before = torch.cuda.memory_allocated() - others
                assert trainer.hold("weights") > 0
                between = torch.cuda.memory_allocated() - others
                trainer.hold("nothing")
                after = torch.cuda.memory_allocated() - others
                print(f"bytes held: {before}, {between}, {after}")
                assert after < between < before
        if moves:
            trainer.hold("everything")
        weights = [p.detach().double().sum().item() for p in trainer._state.chunks[0].parameters()]
        found.append([numbers, weights])
        if moves:
            trainer.shutdown()
    return found


def fifty_switches(root: str) -> list[dict[str, float]]:
    from slime_testing.colocate_case import QUARTER, Couple

    began = time.monotonic()
    with Couple(QUARTER, Path(root) / "model", at_once=True) as couple:
        print(f"both ready after {time.monotonic() - began:.1f} s", flush=True)
        return [couple.cycle() for _ in range(50)]


def test_a_step_after_a_move_is_the_step_without(tmp_path: Path) -> None:
    make_qwen3(tmp_path / "model", **SIZES)
    stayed, moved = run_alone(steps, str(tmp_path))
    assert stayed == moved


def test_fifty_switches_take_no_more_memory_than_five(tmp_path: Path) -> None:
    cycles = run_alone(fifty_switches, str(tmp_path))
    settled, last = cycles[4], cycles[-1]
    assert settled["free_generating"] - last["free_generating"] < 64 * 2**20
    assert settled["free_training"] - last["free_training"] < 64 * 2**20
    assert last["resident"] - settled["resident"] < 128 * 2**20
    assert len({cycle["perf/offload_host_bytes"] for cycle in cycles}) == 1
    both = [
        sum(c[f"perf/{n}_s"] for n in ("release", "onload", "offload", "resume")) for c in cycles
    ]
    print(f"switches: first {both[0]:.2f} s, then {sorted(both[1:])[24]:.3f} s; {last}")
