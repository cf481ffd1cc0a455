"""Grids of parallel ranks in bfloat16 take the steps that one GPU takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_side_by_side
from slime_testing.tiny import make_qwen3
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

GPUS = torch.cuda.device_count()
TENSOR = ("--tensor-model-parallel-size", "2")
PIPELINE = ("--pipeline-model-parallel-size", "2")
CONTEXT = ("--context-parallel-size", "2")
EXPERT = ("--expert-model-parallel-size", "2")
OVERLAP = ("--overlap-grad-reduce", "--overlap-param-gather")
RECOMPUTE = ("--recompute-granularity", "full", "--recompute-method", "uniform")
GRIDS: dict[str, tuple[str, int, tuple[str, ...], dict[str, int]]] = {
    "recomputed": ("dense", 1, (*RECOMPUTE, "--recompute-num-layers", "1"), {}),
    "DP2": ("dense", 2, OVERLAP, {"dp": 2}),
    "TP2": ("dense", 2, TENSOR, {"tp": 2}),
    "TP2, sequence parallel": ("dense", 2, (*TENSOR, "--sequence-parallel"), {"tp": 2}),
    "PP2": ("dense", 2, PIPELINE, {"pp": 2}),
    "CP2": ("dense", 2, CONTEXT, {"cp": 2}),
    "EP2": ("experts", 2, EXPERT, {"dp": 2, "ep": 2}),
    "TP2 x DP2": ("dense", 4, TENSOR, {"tp": 2, "dp": 2}),
    "CP2 x DP2": ("dense", 4, CONTEXT, {"cp": 2, "dp": 2}),
    "TP2 x PP2": ("dense", 4, (*TENSOR, *PIPELINE), {"tp": 2, "pp": 2}),
}


def train(rank: int, ranks: int, root: str, model: str, name: str) -> list[float] | None:
    """Of rank 0 the losses and gradient norms of three iterations."""
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    argv, sizes = GRIDS[name][2:] if name in GRIDS else ((), {})
    flags = ("--bf16", "--use-distributed-optimizer", *argv)
    config = make_config(Path(root) / model, *flags, device="cuda")
    trainer = TrainerRank(config, rank, ranks)
    trainer.initialize(f"file://{root}/{model}-{ranks}-{name.replace(' ', '')}")
    payload = make_payload(make_batch(), ParallelLayout(**sizes), config.batch, rank)
    metrics = [trainer.train(i, payload) for i in range(3)]
    trainer.shutdown()
    if rank:
        return None
    return [m[key] for m in metrics for key in ("train/loss", "train/grad_norm")]


def run(root: Path, ranks: int, model: str, name: str) -> Any:
    return run_side_by_side(ranks, train, str(root), model, name, seconds=300)[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grids")
    make_qwen3(root / "dense", hidden_size=256, num_attention_heads=8, num_key_value_heads=2)
    make_family(root / "experts", "qwen3_moe")
    return root


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, Any]:
    return {model: run(root, 1, model, "alone") for model in ("dense", "experts")}


@pytest.mark.skipif(GPUS == 0, reason="needs CUDA devices")
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_trains_as_one_gpu_does(name: str, root: Path, alone: dict[str, Any]) -> None:
    model, ranks, _, _ = GRIDS[name]
    if ranks > GPUS:
        pytest.skip(f"needs {ranks} GPUs, here are {GPUS}")
    found = run(root, ranks, model, name)
    assert found[:2] == pytest.approx(alone[model][:2], rel=3e-2), name
    assert found == pytest.approx(alone[model], rel=0.15), name
