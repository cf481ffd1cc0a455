"""Grids of parallel ranks in bfloat16 step as one GPU does, and export what it exports."""

import functools
from collections.abc import Callable
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
    "DP2, small buckets": ("dense", 2, (*OVERLAP, "--ddp-bucket-size", "20000"), {"dp": 2}),
    "TP2": ("dense", 2, TENSOR, {"tp": 2}),
    "TP2, sequence parallel": ("dense", 2, (*TENSOR, "--sequence-parallel"), {"tp": 2}),
    "PP2": ("dense", 2, PIPELINE, {"pp": 2}),
    "CP2": ("dense", 2, CONTEXT, {"cp": 2}),
    "CP2, cuDNN": ("dense", 2, (*CONTEXT, "--attention-backend", "fused"), {"cp": 2}),
    "EP2": ("experts", 2, EXPERT, {"dp": 2, "ep": 2}),
    "latent, TP2": ("latent", 2, (*TENSOR, "--sequence-parallel"), {"tp": 2}),
    "latent, CP2": ("latent", 2, CONTEXT, {"cp": 2}),
    "latent, EP2": ("latent", 2, (*EXPERT, *OVERLAP), {"dp": 2, "ep": 2}),
    "TP2 x DP2": ("dense", 4, TENSOR, {"tp": 2, "dp": 2}),
    "CP2 x DP2": ("dense", 4, CONTEXT, {"cp": 2, "dp": 2}),
    "TP2 x PP2": ("dense", 4, (*TENSOR, *PIPELINE), {"tp": 2, "pp": 2}),
    "TP2 x EP2": (
        *("experts", 4, (*TENSOR, *EXPERT, "--sequence-parallel")),
        {"tp": 2, "dp": 2, "ep": 2},
    ),
}
LATENT_HEADS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
"""Sizes for which there are kernels."""
ROUTERS = (
    *("--moe-router-load-balancing-type", "aux_loss"),
    *("--moe-aux-loss-coeff", "0.01", "--moe-z-loss-coeff", "0.001"),
)
LEARNING_RATE = 1e-3
COMPARED = {
    "train/loss": 3e-2,
    "train/grad_norm": 3e-2,
    "train/load_balancing_loss": 0.1,
    "train/z_loss": 0.1,
}
"""Metrics, with how far apart those of the first step may be; those of routers are means over
microbatches, in which other layouts put other samples together."""


def train(rank: int, ranks: int, root: str, model: str, name: str) -> dict[str, list[float]] | None:
    """Of rank 0 the metrics of three iterations; the model before and after goes into files."""
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    argv, sizes = GRIDS[name][2:] if name in GRIDS else ((), {})
    routers = ROUTERS if model == "experts" else ()
    flags = ("--bf16", "--use-distributed-optimizer", *routers, *argv)
    config = make_config(Path(root) / model, *flags, "--lr", str(LEARNING_RATE), device="cuda")
    trainer = TrainerRank(config, rank, ranks)
    trainer.initialize(f"file://{root}/{model}-{ranks}-{name.replace(' ', '')}")
    payload = make_payload(make_batch(), ParallelLayout(**sizes), config.batch, rank)
    write_export(trainer, weights_file(root, model, name, "before"))
    metrics = [trainer.train(i, payload) for i in range(3)]
    write_export(trainer, weights_file(root, model, name, "after"))
    trainer.shutdown()
    return {key: [m[key] for m in metrics] for key in COMPARED if key in metrics[0]}


def write_export(trainer: Any, file: Path) -> None:
    """What engines would be sent, in small buckets. Collective."""
    from slime_megatron.mcore.weights.export import on_ranks

    def write(buckets: Any) -> None:
        sent = {name: tensor.cpu().clone() for bucket in buckets for name, tensor in bucket}
        torch.save(sent, file)

    on_ranks(trainer._state, (0,), write, bucket_bytes=100_000)


def weights_file(root: Path | str, model: str, name: str, when: str) -> Path:
    return Path(root) / f"{model}-{name.replace(' ', '')}-{when}.pt"


def run(root: Path, ranks: int, model: str, name: str) -> Any:
    return run_side_by_side(ranks, train, str(root), model, name, seconds=300)[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grids")
    make_qwen3(root / "dense", hidden_size=256, num_attention_heads=8, num_key_value_heads=2)
    make_family(root / "experts", "qwen3_moe")
    make_family(root / "latent", "deepseek_v3", **LATENT_HEADS)
    return root


@pytest.fixture(scope="module")
def alone(root: Path) -> Callable[[str], dict[str, list[float]]]:
    return functools.cache(lambda model: run(root, 1, model, "alone"))


@pytest.mark.skipif(GPUS == 0, reason="needs CUDA devices")
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_trains_and_exports_as_one_gpu_does(
    name: str, root: Path, alone: Callable[[str], dict[str, list[float]]]
) -> None:
    model, ranks, _, _ = GRIDS[name]
    if ranks > GPUS:
        pytest.skip(f"needs {ranks} GPUs, here are {GPUS}")
    found, wanted = run(root, ranks, model, name), alone(model)
    assert found.keys() == wanted.keys()
    for key, values in found.items():
        assert values[0] == pytest.approx(wanted[key][0], rel=COMPARED[key]), (name, key)
        assert values == pytest.approx(wanted[key], rel=0.15), (name, key)
    same_exports(root, model, name)


def same_exports(root: Path, model: str, name: str) -> None:
    """Before training to the bit; Adam moves a weight by at most its rate, more or less, a step."""
    before, after = (
        [torch.load(weights_file(root, model, who, when)) for who in (name, "alone")]
        for when in ("before", "after")
    )
    assert before[0].keys() == before[1].keys() == after[0].keys()
    for key, tensor in before[0].items():
        assert torch.equal(tensor, before[1][key]), f"{name}: {key} before training"
        start, trained, wanted = (x.float() for x in (tensor, after[0][key], after[1][key]))
        apart = (trained - wanted).abs() - 2**-7 * wanted.abs()
        assert apart.max() <= 6 * LEARNING_RATE, f"{name}: {key} after training"
        moved = (trained - start).abs().mean(), (trained - wanted).abs().mean()
        assert moved[0] >= 2 * moved[1], f"{name}: {key} is nearer to where it began: {moved}"
