"""One training step on fixed data is the same step however it is divided."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from slime_core.schedule.layout import ParallelLayout
from slime_testing.layout_case import FEW, OVERLAPPING, STATIC, Case
from slime_testing.objectives import OBJECTIVES, PAIRS
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

DYNAMIC = replace(STATIC, use_dynamic_batch_size=True, max_tokens_per_gpu=64)
SP = ("--sequence-parallel",)
DISTRIBUTED = ("--use-distributed-optimizer",)
INTERLEAVED = ("--num-virtual-stages-per-pipeline-rank=2",)
FULL = ("--recompute-granularity=full", "--recompute-method=uniform", "--recompute-num-layers=1")
SELECTIVE = ("--recompute-granularity=selective",)
ONE, DP4 = ParallelLayout(), ParallelLayout(dp=4)
TP2 = ParallelLayout(tp=2, dp=2)
PP2, CP2 = ParallelLayout(pp=2, dp=2), ParallelLayout(cp=2, dp=2)

ALONE = {
    **{objective: Case(ONE, objective) for objective in OBJECTIVES},
    "tied": Case(ONE, tied=True),
    "microbatches of 1": Case(ONE, batch=replace(STATIC, micro_batch_size=1)),
    "microbatches of 10": Case(ONE, batch=replace(STATIC, micro_batch_size=10)),
    "dynamic": Case(ONE, batch=DYNAMIC),
    "one chunk": Case(ONE, batch=replace(STATIC, log_probs_chunk_size=-1)),
    "padded": Case(ONE, batch=replace(STATIC, data_pad_size_multiplier=32)),
    "distributed optimizer": Case(ONE, flags=DISTRIBUTED),
    "full recomputation": Case(ONE, flags=FULL),
    "selective recomputation": Case(ONE, flags=SELECTIVE),
}
TWO_STEPS = replace(STATIC, global_batch_size=4)
ALONE["two steps"] = Case(ONE, batch=TWO_STEPS)
ALONE["few"] = Case(ONE, batch=FEW, few=True)
DIVIDED = {
    "tp2 two steps": Case(TP2, batch=TWO_STEPS, flags=SP),
    "pp2 two steps": Case(PP2, batch=TWO_STEPS),
    "cp2 two steps": Case(CP2, batch=TWO_STEPS),
    "dp4": Case(DP4, flags=DISTRIBUTED),
    "dp4 few": Case(DP4, batch=FEW, flags=OVERLAPPING, few=True),
    "pp2 interleaved few": Case(replace(PP2, vpp=2), batch=FEW, flags=INTERLEAVED, few=True),
    "cp2 few": Case(CP2, batch=FEW, few=True),
    "dp4 gspo": Case(DP4, "gspo"),
    "dp4 overlapping": Case(DP4, flags=OVERLAPPING),
    "dp4 overlapping two steps": Case(DP4, batch=TWO_STEPS, flags=OVERLAPPING),
    "pp2 tied overlapping": Case(PP2, tied=True, flags=OVERLAPPING),
    "pp2 interleaved overlapping": Case(replace(PP2, vpp=2), flags=(*INTERLEAVED, *OVERLAPPING)),
    "dp4 critic overlapping": Case(DP4, "critic", flags=OVERLAPPING),
    "tp2": Case(TP2),
    "tp2 sequence parallel": Case(TP2, flags=(*SP, *DISTRIBUTED)),
    "tp2 tied": Case(TP2, tied=True, flags=SP),
    "tp2 recomputed": Case(TP2, flags=(*SP, *FULL)),
    "tp2 dynamic": Case(TP2, batch=DYNAMIC),
    "pp2": Case(PP2, flags=DISTRIBUTED),
    "pp2 tied": Case(PP2, tied=True),
    "pp2 gspo": Case(PP2, "gspo"),
    "pp2 dynamic": Case(PP2, batch=DYNAMIC),
    "pp2 interleaved": Case(replace(PP2, vpp=2), flags=INTERLEAVED),
    "cp2": Case(CP2, flags=DISTRIBUTED),
    "cp2 gspo": Case(CP2, "gspo"),
    "cp2 sft": Case(CP2, "sft"),
    "cp2 dynamic": Case(CP2, batch=DYNAMIC),
    "dp4 critic": Case(DP4, "critic", flags=DISTRIBUTED),
    "tp2 critic": Case(TP2, "critic", flags=SP),
    "tp2 pp2 critic": Case(ParallelLayout(tp=2, pp=2), "critic"),
    "cp2 critic": Case(CP2, "critic"),
    "tp2 pp2 dpo": Case(ParallelLayout(tp=2, pp=2), "dpo"),
    "cp2 dpo": Case(CP2, "dpo"),
    "tp2 rm": Case(TP2, "rm", flags=SP),
    "cp2 rm": Case(CP2, "rm"),
    "tp2 custom": Case(TP2, "custom", flags=SP),
    "cp2 custom": Case(CP2, "custom"),
    "cp4": Case(ParallelLayout(cp=4)),
    "tp2 pp2": Case(ParallelLayout(tp=2, pp=2)),
    "tp2 pp2 tied": Case(ParallelLayout(tp=2, pp=2), tied=True, flags=SP),
    "tp2 cp2": Case(ParallelLayout(tp=2, cp=2), flags=SP),
    "pp2 cp2": Case(ParallelLayout(pp=2, cp=2)),
}


SECONDS = 1800
"""Two dozen models on four ranks, on two cores that others use too."""


def step_on_rank(
    rank: int, world: int, directories: dict[bool, str], cases: dict[str, Case]
) -> dict[str, dict[str, float]]:
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_given, make_payload

    found: dict[str, dict[str, float]] = {}
    for name, case in cases.items():
        pairs = case.objective in PAIRS
        batch = make_batch(1 if case.few else 8, pairs=pairs)
        given = make_given(batch) if case.objective == "critic" else {}
        sections = {"batch": case.batch, **OBJECTIVES[case.objective]}
        config = make_config(Path(directories[case.tied]), *case.argv, **sections)
        trainer = TrainerRank(config, rank, world)
        trainer.initialize()
        payload = make_payload(batch, case.layout, case.batch, rank, whole_rollouts=pairs)
        # The second iteration depends on every gradient of the first.
        first = dict(trainer.train(0, payload, given))
        opening = dict(trainer.steps[0]) if rank == 0 else {}
        second = trainer.train(1, payload, given)
        found[name] = first | {f"second {k}": v for k, v in second.items()}
        if rank == 0:
            found[name] |= {f"first step {k}": v for k, v in opening.items()}
        if case.objective == "critic":
            values = trainer.values(payload)
            found[name] |= {f"value of {row}": float(v.sum()) for row, v in values.items()}
    return found


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    return {
        tied: str(make_qwen3(tmp_path_factory.mktemp("model"), tied=tied, layers=4))
        for tied in (False, True)
    }


@pytest.fixture(scope="module")
def steps(directories: dict[bool, str]) -> dict[str, dict[str, float]]:
    alone = run_on_ranks(1, step_on_rank, directories, ALONE, megatron=True, seconds=SECONDS)[0]
    ranks = run_on_ranks(4, step_on_rank, directories, DIVIDED, megatron=True, seconds=SECONDS)
    # Rank 0 reports metrics; every data-parallel rank reports values of its own samples.
    divided = {
        name: {key: x for rank in reversed(ranks) for key, x in rank[name].items()}
        for name in DIVIDED
    }
    return {**alone, **divided}


def reference(case: Case) -> str:
    if case.batch == TWO_STEPS:
        return "two steps"
    if case.few:
        return "few"
    return "tied" if case.tied else case.objective


COMPARED = {name: case for name, case in (ALONE | DIVIDED).items() if name != reference(case)}


ONE_STEP = {n: c for n, c in (ALONE | DIVIDED).items() if c.batch != TWO_STEPS}
NOT_COMPARED = ("perf/", "clipfrac")
"""Timings; shares of tokens that a rounding error moves over a threshold."""


@pytest.mark.parametrize("name", COMPARED)
def test_the_step_does_not_depend_on_how_it_is_divided(
    steps: dict[str, dict[str, float]], name: str
):
    expected, found = steps[reference(COMPARED[name])], steps[name]
    compared = [key for key in expected if not any(word in key for word in NOT_COMPARED)]
    assert any(key.startswith("first step train/loss") for key in compared)
    for key in compared:
        # What follows an update feels its rounding errors, times a large learning rate.
        exact = key.startswith(("first step", "rollout")) or name in ONE_STEP
        exact = exact and not key.startswith(("second", "value of"))
        tolerance = 1e-5 if exact else 1e-3
        # A chi-square is a mean of ratios less 1, of which little is left.
        absolute = 1e-3 if "chi2" in key and not exact else 1e-7
        assert math.isclose(found[key], expected[key], rel_tol=tolerance, abs_tol=absolute), key


@pytest.mark.parametrize("name", [n for n, c in ONE_STEP.items() if c.objective == "grpo"])
def test_policy_and_reference_agree_bit_for_bit_before_the_first_step(
    steps: dict[str, dict[str, float]], name: str
):
    found = steps[name]
    # k3 is nowhere negative, so its mean is 0 only if every token's is.
    assert found["train/kl_loss"] == 0.0
    assert found["train/ppo_kl"] == 0.0
    assert math.isclose(found["rollout/log_probs"], found["rollout/ref_log_probs"], rel_tol=1e-6)
    assert found["second train/kl_loss"] > 0.0


@pytest.mark.parametrize("name", [n for n in ALONE | DIVIDED if n not in ONE_STEP])
def test_recomputed_old_log_probs_are_those_of_the_first_step_bit_for_bit(
    steps: dict[str, dict[str, float]], name: str
):
    found = steps[name]
    assert found["first step train/ppo_kl"] == 0.0
    assert found["first step train/pg_clipfrac"] == 0.0
    assert found["first step train/kl_loss"] == 0.0
    assert found["train/ppo_kl"] != 0.0
    assert found["rollout/log_probs"] == found["rollout/ref_log_probs"]


@pytest.mark.parametrize("name", ["full recomputation", "selective recomputation"])
def test_recomputation_changes_no_bit(steps: dict[str, dict[str, float]], name: str):
    for key, value in steps["grpo"].items():
        if "perf/" not in key:
            assert steps[name][key] == value, key


def test_a_custom_loss_over_logits_is_the_built_in_one(steps: dict[str, dict[str, float]]):
    built_in, custom = steps["the same built in"], steps["custom"]
    assert custom["train/loss"] == pytest.approx(built_in["train/loss"], rel=1e-5)
    assert custom["train/grad_norm"] == pytest.approx(built_in["train/grad_norm"], rel=1e-5)
    assert custom["train/entropy"] == pytest.approx(built_in["train/entropy_loss"], rel=1e-5)


def test_a_critic_that_knows_nothing_yet_moves_its_head_first(steps: dict[str, dict[str, float]]):
    found = steps["critic"]
    assert found["first step train/values"] == 0.0
    assert found["second critic/values"] != 0.0
    assert found["second critic/loss"] < found["critic/loss"]


@pytest.mark.parametrize(("name", "indifference"), [("dpo", 0.6931472), ("rm", 0.6931472)])
def test_preferences_start_indifferent_and_are_learnt(
    steps: dict[str, dict[str, float]], name: str, indifference: float
):
    assert steps[name]["train/loss"] == pytest.approx(indifference, rel=1e-5)
    assert steps[name]["second train/loss"] < steps[name]["train/loss"]
