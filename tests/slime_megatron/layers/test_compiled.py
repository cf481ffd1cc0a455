"""Compiled layers train as others do, in every family."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECOMPUTED = ("--recompute-granularity=selective", "--recompute-modules=core_attn")
CASES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "qwen3": ("qwen3", ()),
    "qwen3, attention recomputed": ("qwen3", RECOMPUTED),
    "qwen3_moe": ("qwen3_moe", ()),
    "glm4": ("glm4", ()),
    "glm4_moe": ("glm4_moe", ()),
    "mimo": ("mimo", ()),
    "deepseek_v3": ("deepseek_v3", ()),
    "deepseek_v3, attention recomputed": ("deepseek_v3", RECOMPUTED),
    "glm4_moe_lite": ("glm4_moe_lite", ()),
    "kimi_k2": ("kimi_k2", ()),
}
TRACED = ("deepseek_v3",)
"""Cases whose layers are traced as well, which takes long; the others' are run as they are."""


def losses(rank: int, world: int, directory: str) -> dict[str, dict[str, list[float]]]:
    """By case and way, loss and gradient norm of an iteration."""
    import torch
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.mcore.layers.compiled import compile_layers
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    def loss(way: str, family: str, flags: tuple[str, ...]) -> list[float]:
        config = make_config(Path(directory, family), *flags)
        payload = make_payload(make_batch(), ParallelLayout(), config.batch, rank)
        trainer = TrainerRank(config, rank, world)
        trainer.initialize()
        if way != "plain":
            assert compile_layers(trainer._state.chunks, backend="aot_eager") == 2
        torch.compiler.set_stance("default" if way == "traced" else "force_eager")
        metrics = trainer.train(0, payload)
        return [metrics["train/loss"], metrics["train/grad_norm"]]

    return {
        case: {
            way: loss(way, *described)
            for way in ("plain", "compiled", *(("traced",) if case in TRACED else ()))
        }
        for case, described in CASES.items()
    }


def test_compiled_layers_of_every_family_train_as_others_do(tmp_path: Path) -> None:
    for family, _ in CASES.values():
        make_family(tmp_path / family, family)
    found = run_on_ranks(1, losses, str(tmp_path), megatron=True)[0]
    for case, values in found.items():
        for way in values:
            assert values[way] == pytest.approx(values["plain"], rel=1e-4), (case, way)
