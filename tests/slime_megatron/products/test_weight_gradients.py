"""Weight gradients added up inside the matrix product are those Megatron adds up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2}
RECOMPUTED = (
    "--recompute-granularity", "full", "--recompute-method", "uniform",
    "--recompute-num-layers", "1",
)  # fmt: skip
SEQUENCE_PARALLEL = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
PIPELINE = ("--pipeline-model-parallel-size", "2")
ALONE = (
    ("Megatron's", ()), ("fused", ()), ("traced", ()), ("traced", RECOMPUTED),
)  # fmt: skip
OVERLAPPED = ("--overlap-grad-reduce", "--overlap-param-gather", "--ddp-bucket-size", "20000")
IN_PAIRS = (("traced", SEQUENCE_PARALLEL), ("compiled", OVERLAPPED), ("fused", PIPELINE))


def steps(
    rank: int, world: int, directory: str, cases: tuple[tuple[str, tuple[str, ...]], ...]
) -> list[list[list[float]]]:
    """Losses and gradient norms of two iterations for each case."""
    return [train(rank, world, directory, way, argv) for way, argv in cases]


def train(
    rank: int, world: int, directory: str, way: str, argv: tuple[str, ...]
) -> list[list[float]]:
    """Megatron's way, fused, or fused and compiled: traced, or run as it is."""
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    config = make_config(Path(directory), "--use-distributed-optimizer", *argv)
    trainer = TrainerRank(config, rank, world)
    trainer.initialize()
    chunks = trainer._state.chunks
    from slime_megatron.mcore.products.weight_gradients import fuse_weight_gradients

    if way != "Megatron's":
        stages = 2 if argv == PIPELINE else 1
        assert fuse_weight_gradients(chunks) == 4 * trainer._state.args.num_layers // stages
    if way in ("compiled", "traced"):
        compile_as_on_a_gpu(chunks)
    if way == "traced":
        torch.compiler.set_stance("default")
    assert len(chunks[0].bucket_groups) > 2 or argv != OVERLAPPED
    layout = ParallelLayout(
        dp=2 if argv == OVERLAPPED else 1,
        tp=2 if argv == SEQUENCE_PARALLEL else 1,
        pp=2 if argv == PIPELINE else 1,
    )
    found: list[list[float]] = []
    payload = make_payload(make_batch(), layout, config.batch, rank)
    for i in range(2):
        metrics = trainer.train(i, payload)
        found.append([metrics[f"train/{n}"] for n in ("loss", "grad_norm")] if metrics else [])
    return found


def compile_as_on_a_gpu(chunks: Any) -> None:
    """Graphs that are traced run as they are."""
    from megatron.core.transformer.transformer_layer import TransformerLayer
    from slime_megatron.mcore.layers import compiled

    torch.compiler.set_stance("force_eager")
    assert compiled.compile_layers(chunks, backend="aot_eager")
    layers = [m for chunk in chunks for m in chunk.modules() if isinstance(m, TransformerLayer)]
    inside = [m for layer in layers for m in layer.modules() if m is not layer]
    assert not any(m._forward_pre_hooks for m in inside), "traced, each ties a graph to one layer"


def test_they_are_the_sums_megatron_would_have(tmp_path: Path) -> None:
    model = str(make_qwen3(tmp_path, **SIZES))
    wanted, *alone = run_on_ranks(1, steps, model, ALONE, megatron=True)[0]
    in_pairs = run_on_ranks(2, steps, model, IN_PAIRS, megatron=True)[0]
    assert wanted[0] != wanted[1]
    cases = zip((*ALONE[1:], *IN_PAIRS), (*alone, *in_pairs), strict=True)
    for case, found in cases:
        for row, other in zip(found, wanted, strict=True):
            assert row == pytest.approx(other, rel=1e-4), case
