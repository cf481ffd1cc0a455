"""Where a part of the weights is trained, that part gets the gradients it is due."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Choice = dict[str, tuple[str, ...]]
Case = tuple[Choice, tuple[str, ...], bool]
"""What is trained, Megatron's flags, whether products add to the sums as they do on a GPU."""

FULL = (
    "--recompute-granularity", "full", "--recompute-method", "uniform",
    "--recompute-num-layers", "1",
)  # fmt: skip
EXPERTS_AGAIN = ("--recompute-granularity", "selective", "--recompute-modules", "moe")
GROUPED = "--moe-grouped-gemm"
PIPELINE = ("--pipeline-model-parallel-size", "2")
NO_EMBEDDING: Choice = {"freeze_params_name_list": ("embedding",)}
EXPERTS: Choice = {"only_train_params_name_list": ("experts",)}
SOME_EXPERTS: Choice = {"only_train_params_name_list": (r"local_experts\.[12]\.",)}
NO_EXPERTS: Choice = {"freeze_params_name_list": ("experts",)}
FIRST_EXPERT: Choice = {"only_train_params_name_list": (r"local_experts\.0\.",)}
HOST_MEMORY = ("--optimizer-cpu-offload", "--use-precision-aware-optimizer")
EXPERT_RANKS = ("--expert-model-parallel-size", "2")
UPPER_HALF: Choice = {"freeze_params_name_list": ("embedding", r"layers\.0\.")}


def steps(
    rank: int, world: int, directory: str, cases: Sequence[Case]
) -> list[dict[str, list[float]]]:
    return [step(rank, world, directory, *case) for case in cases]


def step(
    rank: int, world: int, directory: str, choice: Choice, argv: tuple[str, ...], fused: bool
) -> dict[str, list[float]]:
    """The clipped gradient, as its norm and largest number, of every trained weight."""
    from slime_core.config.model import ModelConfig
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.mcore.products.weight_gradients import fuse_weight_gradients
    from slime_megatron.mcore.weights.places import global_names
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    model: Any = ModelConfig(hf_checkpoint=directory, **choice)
    config = make_config(Path(directory), "--use-distributed-optimizer", *argv, model=model)
    trainer = TrainerRank(config, rank, world)
    trainer.initialize()
    chunks: list[Any] = trainer._state.chunks
    if fused:
        fuse_weight_gradients(chunks)
    payload = make_payload(make_batch(), ParallelLayout(pp=world), config.batch, rank)
    trainer.train(0, payload)
    return {
        name: [float(weight.main_grad.norm()), float(weight.main_grad.max())]
        for chunk in chunks
        for name, weight in global_names(chunk)
        if weight.requires_grad
    }


def assert_same(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> None:
    assert found.keys() == wanted.keys()
    assert all(norm > 0 for norm, _ in wanted.values())
    for name, values in found.items():
        assert values == pytest.approx(wanted[name], rel=1e-3, abs=1e-6), name


def test_layers_computed_again_are_trained_on_top_of_what_is_not(tmp_path: Path) -> None:
    model = make_family(tmp_path, "qwen3_moe")
    cases: list[Case] = [
        (choice, argv, False)
        for choice, argv in (
            (NO_EMBEDDING, ()), (NO_EMBEDDING, FULL), (EXPERTS, ()), (EXPERTS, EXPERTS_AGAIN),
        )
    ]  # fmt: skip
    stored, again, experts, experts_again = run_on_ranks(
        1, steps, str(model), cases, megatron=True
    )[0]
    assert_same(again, stored)
    assert_same(experts_again, experts)


def test_some_experts_are_trained_beside_frozen_ones(tmp_path: Path) -> None:
    model = make_family(tmp_path, "qwen3_moe")
    cases: list[Case] = [
        (SOME_EXPERTS, (), False), (SOME_EXPERTS, (GROUPED,), False),
        (SOME_EXPERTS, (GROUPED,), True),
        (NO_EXPERTS, (), False), (NO_EXPERTS, (GROUPED,), True),
    ]  # fmt: skip
    wanted, together, fused, others, others_fused = run_on_ranks(
        1, steps, str(model), cases, megatron=True
    )[0]
    assert len(wanted) == 2 * 2 * 2  # layers, experts, matrices
    assert_same(together, wanted)
    assert_same(fused, wanted)
    assert_same(others_fused, others)


def test_names_are_those_of_the_whole_model_on_every_pipeline_stage(tmp_path: Path) -> None:
    model = str(make_qwen3(tmp_path, tied=True))
    case: list[Case] = [(UPPER_HALF, (), False)]
    wanted = run_on_ranks(1, steps, model, case, megatron=True)[0][0]
    divided: list[Case] = [(UPPER_HALF, PIPELINE, False)]
    stages = run_on_ranks(2, steps, model, divided, megatron=True, seconds=120)
    assert stages[0] == [{}]  # the embedding's copy on the last stage is as frozen
    assert_same(stages[1][0], wanted)


def refused(rank: int, world: int, directory: str) -> str:
    from slime_core.errors import ConfigError

    with pytest.raises(ConfigError) as error:
        step(rank, world, directory, FIRST_EXPERT, EXPERT_RANKS, False)
    return str(error.value)


def test_a_rank_without_an_expert_to_train_is_refused_on_all_ranks(tmp_path: Path) -> None:
    model = make_family(tmp_path, "qwen3_moe")
    for told in run_on_ranks(2, refused, str(model), megatron=True, seconds=60):
        assert "no expert to train" in told


def continues(
    rank: int, world: int, directory: str, names: tuple[str, ...], argv: tuple[str, ...], work: str
) -> None:
    """Losses and norms of two iterations, and again from a checkpoint made before them."""
    from slime_core.config.model import ModelConfig
    from slime_core.schedule.plan import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    model = ModelConfig(hf_checkpoint=directory, freeze_params_name_list=names)
    config = make_config(Path(directory), "--use-distributed-optimizer", *argv, model=model)
    layout = ParallelLayout(ep=2, dp=2) if argv == EXPERT_RANKS else ParallelLayout(pp=world)
    payload = make_payload(make_batch(), layout, config.batch, rank)

    def run(trainer: Any, first: int) -> list[dict[str, float]]:
        metrics = [trainer.train(i, payload) for i in range(first, 3)]
        names = ("train/loss", "train/grad_norm")
        return [{name: m[name] for name in names} for m in metrics if m]

    trainer = TrainerRank(config, rank, world)
    trainer.initialize()
    trainer.train(0, payload)
    trainer.save(Path(work), 0)
    wanted = run(trainer, 1)
    again = TrainerRank(config, rank, world)
    again.initialize(load=Path(work))
    assert run(again, 1) == wanted


@pytest.mark.parametrize(
    ("ranks", "names", "argv"),
    [
        (1, (r"layers\.0\.",), ()),
        (1, (r"local_experts\.1\.",), (GROUPED,)),
        (2, (r"layers\.0\.self_attention", r"local_experts\.1\."), EXPERT_RANKS),
        (2, (r"layers\.0\.self_attention",), PIPELINE),
        (2, ("embedding", r"layers\.0\."), PIPELINE),
        (2, ("embedding", r"layers\.0\."), (*PIPELINE, *HOST_MEMORY)),
    ],
    ids=[
        "a layer",
        "an expert of each layer",
        "on expert-parallel ranks",
        "on pipeline stages",
        "all of a stage",
        "all of a stage, with the optimizer in host memory",
    ],
)
def test_a_run_with_frozen_weights_continues_bit_for_bit(
    tmp_path: Path, ranks: int, names: tuple[str, ...], argv: tuple[str, ...]
) -> None:
    model = str(make_family(tmp_path / "model", "qwen3_moe"))
    (tmp_path / "checkpoint").mkdir()
    work = str(tmp_path / "checkpoint")
    run_on_ranks(ranks, continues, model, names, argv, work, megatron=True, seconds=120)
