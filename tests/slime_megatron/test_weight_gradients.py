"""Weight gradients added up inside the matrix product are those Megatron adds up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2}
TENSOR_PARALLEL = ("--tensor-model-parallel-size", "2")


def steps(
    rank: int, world: int, directory: str, ways: tuple[str, ...], argv: tuple[str, ...]
) -> dict[str, list[list[float]]]:
    """Losses and gradient norms of three iterations for each way."""
    return {way: train(rank, world, directory, way, argv) for way in ways}


def train(
    rank: int, world: int, directory: str, way: str, argv: tuple[str, ...]
) -> list[list[float]]:
    """Megatron's way, fused, or fused and traced."""
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    config = make_config(Path(directory), "--use-distributed-optimizer", *argv)
    trainer = TrainerRank(config, rank, world)
    trainer.initialize()
    chunks = trainer._state.chunks
    from slime_megatron.mcore.weight_gradients import fuse_weight_gradients

    if way != "Megatron's":
        assert fuse_weight_gradients(chunks) == 4 * trainer._state.args.num_layers
    if way == "traced":
        trace(chunks)
    layout = ParallelLayout(tp=2 if argv == TENSOR_PARALLEL else 1)
    found: list[list[float]] = []
    for i in range(3):
        payload = make_payload(make_batch(seed=i), layout, config.batch, rank)
        metrics = trainer.train(i, payload)
        found.append([metrics[f"train/{n}"] for n in ("loss", "grad_norm")] if metrics else [])
    return found


def trace(chunks: Any) -> None:
    """Trace layers as on a GPU, and run the graphs as they are."""
    from slime_megatron.mcore import compiled

    torch.compiler.set_stance("default")
    assert compiled.compile_layers(chunks, backend="aot_eager")


def check(found: dict[str, list[list[float]]]) -> None:
    wanted = found.pop("Megatron's")
    assert wanted[0] != wanted[1]
    for way, rows in found.items():
        for row, other in zip(rows, wanted, strict=True):
            assert row == pytest.approx(other, rel=1e-4), way


def test_they_are_the_sums_megatron_would_have(tmp_path: Path) -> None:
    model = str(make_qwen3(tmp_path, **SIZES))
    ways = ("Megatron's", "fused", "traced")
    check(run_on_ranks(1, steps, model, ways, (), megatron=True)[0])


def test_tensor_parallel_layers_keep_megatrons_function(tmp_path: Path) -> None:
    model = str(make_qwen3(tmp_path, **SIZES))
    ways = ("Megatron's", "fused", "traced")
    check(run_on_ranks(2, steps, model, ways, TENSOR_PARALLEL, megatron=True)[0])
