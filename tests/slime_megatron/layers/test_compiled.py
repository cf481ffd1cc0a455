"""Compiled layers train as others do, in every family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from slime_core.schedule.layout import ParallelLayout
from slime_testing.layout_case import Case
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECOMPUTED = ("--recompute-granularity=selective", "--recompute-modules=core_attn")
SEQUENCE = ("--sequence-parallel", "--use-distributed-optimizer")
ONE, TP2, CP2 = ParallelLayout(), ParallelLayout(tp=2), ParallelLayout(cp=2)
ALONE: Mapping[str, tuple[str, Case]] = {
    "qwen3": ("qwen3", Case(ONE)),
    "qwen3, attention recomputed": ("qwen3", Case(ONE, flags=RECOMPUTED)),
    "qwen3_moe": ("qwen3_moe", Case(ONE)),
    "glm4": ("glm4", Case(ONE)),
    "glm4_moe": ("glm4_moe", Case(ONE)),
    "mimo": ("mimo", Case(ONE)),
    "deepseek_v3": ("deepseek_v3", Case(ONE)),
    "deepseek_v3, attention recomputed": ("deepseek_v3", Case(ONE, flags=RECOMPUTED)),
    "glm4_moe_lite": ("glm4_moe_lite", Case(ONE)),
    "kimi_k2": ("kimi_k2", Case(ONE)),
}
SHARED: Mapping[str, tuple[str, Case]] = {
    "glm4, TP2": ("glm4", Case(TP2, flags=SEQUENCE)),
    "glm4_moe, TP2": ("glm4_moe", Case(TP2, flags=SEQUENCE)),
    "deepseek_v3, TP2": ("deepseek_v3", Case(TP2, flags=SEQUENCE)),
    "deepseek_v3, CP2": ("deepseek_v3", Case(CP2)),
}
TRACED = ("glm4", "deepseek_v3", *SHARED)
"""Cases whose layers are traced as well, which takes long; the others' are run as they are."""


def iterations(
    rank: int, world: int, directory: str, cases: Mapping[str, tuple[str, Case]]
) -> dict[str, dict[str, dict[str, float]]]:
    """By case and way, the loss of an iteration and norms of this rank's gradients."""
    import torch
    from slime_megatron.mcore.layers.compiled import compile_layers
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    def iteration(way: str, family: str, case: Case) -> dict[str, float]:
        config = make_config(Path(directory, family), *case.argv)
        payload = make_payload(make_batch(), case.layout, config.batch, rank)
        trainer: Any = TrainerRank(config, rank, world)
        trainer.initialize()
        if way != "plain":
            assert compile_layers(trainer._state.chunks, backend="aot_eager") == 2
        torch.compiler.set_stance("default" if way == "traced" else "force_eager")
        metrics = trainer.train(0, payload)
        found = {"loss": metrics["train/loss"]} if rank == 0 else {}
        for name, weight in trainer._state.chunks[0].named_parameters():
            found[name] = float(weight.main_grad.norm())
        return found

    return {
        name: {
            way: iteration(way, *case)
            for way in ("plain", "traced" if name in TRACED else "compiled")
        }
        for name, case in cases.items()
    }


@pytest.mark.parametrize(("ranks", "cases"), [(1, ALONE), (2, SHARED)])
def test_compiled_layers_of_every_family_train_as_others_do(
    tmp_path: Path, ranks: int, cases: Mapping[str, tuple[str, Case]]
) -> None:
    for family in {family for family, _ in cases.values()}:
        make_family(tmp_path / family, family)
    for rank in run_on_ranks(ranks, iterations, str(tmp_path), cases, megatron=True, seconds=500):
        for name, found in rank.items():
            for way, norms in found.items():
                assert norms == pytest.approx(found["plain"], rel=1e-4, abs=1e-6), (name, way)
