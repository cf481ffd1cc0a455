from pathlib import Path

import pytest
import torch.distributed as dist
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.schedule.layout import ParallelLayout
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

LAYOUTS = {
    "tp2 pp2": ParallelLayout(tp=2, pp=2),
    "dp2 cp2": ParallelLayout(dp=2, cp=2),
}


def flags(layout: ParallelLayout) -> tuple[str, ...]:
    return (
        f"--tensor-model-parallel-size={layout.tp}",
        f"--pipeline-model-parallel-size={layout.pp}",
        f"--context-parallel-size={layout.cp}",
        "--use-distributed-optimizer",
    )


def resumes(rank: int, world: int, model: str, work: str, precision: tuple[str, ...]) -> None:
    """Train two iterations, save, train two more; a new trainer that loads trains the same two."""
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    batches = [make_batch(seed=seed) for seed in range(4)]

    def start(layout: ParallelLayout, load: Path | None = None) -> TrainerRank:
        config = make_config(
            Path(model),
            *flags(layout),
            *precision,
            checkpoint=CheckpointConfig(async_save=True),
            policy_loss=PolicyLossConfig(use_kl_loss=True, kl_loss_coef=0.1),
        )
        trainer = TrainerRank(config, rank, world)
        trainer.initialize(load=load)
        return trainer

    def train(
        trainer: TrainerRank, layout: ParallelLayout, *iterations: int
    ) -> list[dict[str, float]]:
        sizes = make_config(Path(model)).batch
        return [
            {
                name: value
                for name, value in trainer.train(
                    i, make_payload(batches[i], layout, sizes, rank)
                ).items()
                if not name.startswith("perf/")
            }
            for i in iterations
        ]

    saved = Path(work) / "-".join(("saved", *precision))
    first = LAYOUTS["tp2 pp2"]
    trainer = start(first)
    train(trainer, first, 0, 1)
    if rank == 0:
        saved.mkdir()
    dist.barrier()
    trainer.save(saved, 1)
    expected = train(trainer, first, 2, 3)  # while files are written
    assert trainer.finish_save(wait=True)
    if rank == 0:
        assert {"train/loss", "train/grad_norm", "train/kl_loss"} <= set(expected[0])

    trainer = start(first, saved)
    assert trainer.iteration == 2
    assert train(trainer, first, 2, 3) == expected

    other = LAYOUTS["dp2 cp2"]
    trainer = start(other, saved)
    for found, wanted in zip(train(trainer, other, 2, 3), expected, strict=True):
        tolerance = 1e-2 if precision else 1e-4
        assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance)


def resumes_in_both_precisions(rank: int, world: int, model: str, work: str) -> None:
    resumes(rank, world, model, work, ())
    resumes(rank, world, model, work, ("--bf16",))


def test_a_resumed_run_repeats_losses_and_gradient_norms_bit_for_bit(tmp_path: Path):
    model = make_qwen3(tmp_path / "model", tied=True)
    run_on_ranks(4, resumes_in_both_precisions, str(model), str(tmp_path), megatron=True)
