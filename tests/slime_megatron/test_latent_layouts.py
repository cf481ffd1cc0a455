"""A training step of a model with multi-latent attention is the same however it is divided."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.schedule.layout import ParallelLayout
from slime_testing.layout_case import STATIC, Case
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SP = ("--sequence-parallel",)
FULL = ("--recompute-granularity=full", "--recompute-method=uniform", "--recompute-num-layers=1")
SELECTIVE = (
    "--recompute-granularity=selective",
    "--recompute-modules",
    "core_attn",
    "mla_up_proj",
)
ONE = ParallelLayout()
ALONE: Mapping[str, Case] = {
    "alone": Case(ONE),
    "full recomputation": Case(ONE, flags=FULL),
    "selective recomputation": Case(ONE, flags=SELECTIVE),
}
DIVIDED: Mapping[str, Case] = {
    "tp2": Case(ParallelLayout(tp=2), flags=SP),
    "tp2 with whole experts": Case(
        ParallelLayout(tp=2), flags=(*SP, "--expert-tensor-parallel-size=1")
    ),
    "tp2 recomputed": Case(ParallelLayout(tp=2), flags=(*SP, *SELECTIVE)),
    "pp2": Case(ParallelLayout(pp=2), flags=("--use-distributed-optimizer",)),
    "cp2": Case(ParallelLayout(cp=2)),
    "ep2": Case(ParallelLayout(dp=2, ep=2), flags=("--use-distributed-optimizer",)),
}
KL = PolicyLossConfig(use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type="k2", entropy_coef=0.01)


def flags_of(case: Case) -> tuple[str, ...]:
    layout = case.layout
    return (
        f"--tensor-model-parallel-size={layout.tp}",
        f"--pipeline-model-parallel-size={layout.pp}",
        f"--context-parallel-size={layout.cp}",
        f"--expert-model-parallel-size={layout.ep}",
        "--make-vocab-size-divisible-by=8",
        *case.flags,
    )


def step_on_rank(
    rank: int, world: int, directory: str, cases: dict[str, Case]
) -> dict[str, dict[str, float]]:
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    found: dict[str, dict[str, float]] = {}
    for name, case in cases.items():
        config = make_config(Path(directory), *flags_of(case), batch=STATIC, policy_loss=KL)
        trainer = TrainerRank(config, rank, world)
        trainer.initialize()
        payload = make_payload(make_batch(), case.layout, STATIC, rank)
        first = dict(trainer.train(0, payload))
        # The second iteration depends on every gradient of the first.
        second = trainer.train(1, payload)
        found[name] = first | {f"second {k}": v for k, v in second.items()}
    return found


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    directory = str(make_family(tmp_path_factory.mktemp("model"), "deepseek_v3"))
    alone = run_on_ranks(1, step_on_rank, directory, ALONE, megatron=True)[0]
    return alone | run_on_ranks(2, step_on_rank, directory, DIVIDED, megatron=True)[0]


def compared(found: Mapping[str, Any]) -> list[str]:
    """All but timings, and shares of tokens that a rounding error moves over a threshold."""
    return [key for key in found if "perf/" not in key and "clipfrac" not in key]


@pytest.mark.parametrize("name", DIVIDED)
def test_the_step_does_not_depend_on_how_it_is_divided(
    steps: dict[str, dict[str, float]], name: str
):
    expected, found = steps["alone"], steps[name]
    assert "train/grad_norm" in expected
    for key in compared(expected):
        # What follows an update feels its rounding errors, times a large learning rate.
        tolerance = 1e-3 if key.startswith("second") else 1e-5
        assert math.isclose(found[key], expected[key], rel_tol=tolerance, abs_tol=1e-7), key


@pytest.mark.parametrize("name", ["full recomputation", "selective recomputation"])
def test_recomputation_changes_no_bit(steps: dict[str, dict[str, float]], name: str):
    for key in compared(steps["alone"]):
        assert steps[name][key] == steps["alone"][key], key
