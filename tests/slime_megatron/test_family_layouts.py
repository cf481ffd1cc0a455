"""Training steps of experts, post norms and latent attention, however they are divided."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.schedule.layout import ParallelLayout
from slime_testing.layout_case import OVERLAPPING, STATIC, Case
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DISTRIBUTED = ("--use-distributed-optimizer",)
SP = ("--sequence-parallel",)
FULL = ("--recompute-granularity=full", "--recompute-method=uniform", "--recompute-num-layers=1")
SELECTIVE = (
    "--recompute-granularity=selective",
    "--recompute-modules",
    "core_attn",
    "mla_up_proj",
)
GROUPED = ("--moe-grouped-gemm",)
WHOLE_EXPERTS = ("--expert-tensor-parallel-size=1",)
ONE, TP2, PP2, CP2 = (ParallelLayout(**sizes) for sizes in ({}, {"tp": 2}, {"pp": 2}, {"cp": 2}))
EP2 = ParallelLayout(dp=2, ep=2)
FAMILIES = ("qwen3_moe", "glm4", "glm4_moe", "deepseek_v3")
RECOMPUTED: Mapping[str, tuple[str, Case]] = {
    "deepseek_v3 recomputed whole": ("deepseek_v3", Case(ONE, flags=FULL)),
    "deepseek_v3 recomputed in part": ("deepseek_v3", Case(ONE, flags=SELECTIVE)),
}
DIVIDED: Mapping[str, tuple[str, Case]] = {
    "qwen3_moe ep2": ("qwen3_moe", Case(EP2, flags=DISTRIBUTED)),
    "qwen3_moe dp2 overlapping": (
        "qwen3_moe",
        Case(ParallelLayout(dp=2), flags=(*OVERLAPPING, *GROUPED)),
    ),
    "qwen3_moe ep2 overlapping": ("qwen3_moe", Case(EP2, flags=(*OVERLAPPING, *GROUPED))),
    "qwen3_moe tp2": ("qwen3_moe", Case(TP2, flags=(*SP, *FULL))),
    "glm4 tp2": ("glm4", Case(TP2, flags=SP)),
    "glm4 cp2": ("glm4", Case(CP2, flags=DISTRIBUTED)),
    "glm4_moe pp2": ("glm4_moe", Case(PP2, flags=DISTRIBUTED)),
    "glm4_moe cp2 ep2": ("glm4_moe", Case(ParallelLayout(cp=2, ep=2), flags=DISTRIBUTED)),
    "deepseek_v3 tp2": ("deepseek_v3", Case(TP2, flags=SP)),
    "deepseek_v3 tp2 with whole experts": ("deepseek_v3", Case(TP2, flags=(*SP, *WHOLE_EXPERTS))),
    "deepseek_v3 tp2 recomputed": ("deepseek_v3", Case(TP2, flags=(*SP, *SELECTIVE))),
    "deepseek_v3 pp2": ("deepseek_v3", Case(PP2, flags=DISTRIBUTED)),
    "deepseek_v3 cp2": ("deepseek_v3", Case(CP2)),
    "deepseek_v3 ep2": ("deepseek_v3", Case(EP2, flags=DISTRIBUTED)),
}
KL = PolicyLossConfig(use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type="k2", entropy_coef=0.01)
SECONDS = 1500


def step_on_rank(
    rank: int, world: int, directories: dict[str, str], cases: dict[str, tuple[str, Case]]
) -> dict[str, dict[str, float]]:
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    found: dict[str, dict[str, float]] = {}
    for name, (family, case) in cases.items():
        config = make_config(Path(directories[family]), *case.argv, batch=STATIC, policy_loss=KL)
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
    directories = {f: str(make_family(tmp_path_factory.mktemp("model"), f)) for f in FAMILIES}
    alone = {family: (family, Case(ONE)) for family in FAMILIES} | RECOMPUTED
    found = run_on_ranks(1, step_on_rank, directories, alone, megatron=True, seconds=SECONDS)[0]
    divided = run_on_ranks(2, step_on_rank, directories, DIVIDED, megatron=True, seconds=SECONDS)
    return found | divided[0]


def compared(found: Mapping[str, float]) -> list[str]:
    """All but timings, and shares of tokens that a rounding error moves over a threshold."""
    return [key for key in found if "perf/" not in key and "clipfrac" not in key]


@pytest.mark.parametrize("name", DIVIDED)
def test_the_step_does_not_depend_on_how_it_is_divided(
    steps: dict[str, dict[str, float]], name: str
):
    expected, found = steps[DIVIDED[name][0]], steps[name]
    assert expected["train/grad_norm"] > 0
    for key in compared(expected):
        # What follows an update feels its rounding errors, times a large learning rate.
        tolerance = 1e-3 if key.startswith("second") else 1e-5
        assert math.isclose(found[key], expected[key], rel_tol=tolerance, abs_tol=1e-7), key


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputation_changes_no_bit(steps: dict[str, dict[str, float]], name: str):
    expected = steps[RECOMPUTED[name][0]]
    for key in compared(expected):
        assert steps[name][key] == expected[key], key


@pytest.mark.parametrize("name", [*FAMILIES, *RECOMPUTED, *DIVIDED])
def test_a_policy_agrees_with_itself_bit_for_bit_before_the_first_step(
    steps: dict[str, dict[str, float]], name: str
):
    assert steps[name]["train/kl_loss"] == 0.0
    assert steps[name]["train/ppo_kl"] == 0.0
    assert steps[name]["second train/kl_loss"] > 0.0
