"""``--deterministic-mode`` on a GPU: the same batches give the same bits, whatever the kernels."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_side_by_side
from slime_testing.tiny import make_qwen3
from slime_testing.tiny_families import make_family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}


CASES = {
    "dense": "--attention-backend=auto",
    "dense by flash": "--attention-backend=flash",
    "dense by fused": "--attention-backend=fused",
    "experts": "--attention-backend=auto",
}


def trained(_process: int, _processes: int, root: str) -> dict[str, list[Any]]:
    """Of every case: metrics of three iterations, and digests of the weights after them."""
    found: dict[str, list[Any]] = {}
    for case, flag in CASES.items():
        for name in [name for name in os.environ if name.startswith("NVTE_")]:
            del os.environ[name]  # Megatron's note of the last backend, which it compares
        found[case] = numbers(Path(root) / case.split()[0], flag)
    return found


def numbers(model: Path, *flags: str) -> list[Any]:
    from slime_core.config.algorithm import PolicyLossConfig
    from slime_core.digest import tensor_digest
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    config = make_config(
        model,
        "--bf16",
        "--use-distributed-optimizer",
        "--deterministic-mode",
        *flags,
        policy_loss=PolicyLossConfig(loss_type="sft_loss"),
        device="cuda",
    )
    payload = make_payload(make_batch(), ParallelLayout(), config.batch, 0)
    trainer = TrainerRank(config, 0, 1)
    trainer.initialize()
    found: list[Any] = []
    for iteration in range(3):
        metrics = trainer.train(iteration, payload)
        found.append({n: x for n, x in metrics.items() if not n.startswith("perf/")})
    parameters = trainer._state.chunks[0].named_parameters()
    found.append({name: tensor_digest(parameter) for name, parameter in parameters})
    trainer.shutdown()
    return found


def test_the_same_batches_train_a_model_to_the_same_bits(tmp_path: Path) -> None:
    make_qwen3(tmp_path / "dense", **SIZES)
    make_family(tmp_path / "experts", "qwen3_moe")
    first, second = run_side_by_side(2, trained, str(tmp_path))
    differ = [case for case in CASES if first[case] != second[case]]
    assert not differ
