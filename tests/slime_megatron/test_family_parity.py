"""Every family computes what transformers computes, alone and divided over ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from slime_testing import family_case
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Model:
    model_type: str
    changes: tuple[tuple[str, Any], ...] = ()


MODELS: Mapping[str, Model] = {
    "qwen3_moe": Model("qwen3_moe"),
    "qwen3_moe partly dense": Model(
        "qwen3_moe", (("norm_topk_prob", False), ("mlp_only_layers", [0]))
    ),
    "glm4": Model("glm4"),
    "glm4 32B": Model("glm4", (("attention_bias", False), ("rope_theta", 500))),
    "glm4_moe": Model("glm4_moe"),
    "glm4_moe air": Model("glm4_moe", (("use_qk_norm", False), ("n_shared_experts", 2))),
    # transformers has no MiMo: built as the Qwen2 it is without its prediction layers.
    "mimo": Model("mimo"),
}
"""What the published models of a family differ in."""

TP2 = ("--tensor-model-parallel-size=2", "--sequence-parallel")
PP2, CP2 = ("--pipeline-model-parallel-size=2",), ("--context-parallel-size=2",)
EP2, EP4 = ("--expert-model-parallel-size=2",), ("--expert-model-parallel-size=4",)
WHOLE = ("--expert-tensor-parallel-size=1",)
DIVIDED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "qwen3_moe, experts over data ranks": ("qwen3_moe", EP2),
    "qwen3_moe, experts over all ranks": ("qwen3_moe", (*CP2, *EP4)),
    "qwen3_moe, experts over tensor ranks": ("qwen3_moe", (*TP2, *PP2, *EP2, *WHOLE)),
    "qwen3_moe, experts cut and divided": ("qwen3_moe partly dense", (*TP2, *EP2)),
    "glm4, tensor and pipeline": ("glm4", (*TP2, *PP2)),
    "glm4, tensor and context": ("glm4 32B", (*TP2, *CP2)),
    "glm4_moe, experts cut and pipeline": ("glm4_moe", (*TP2, *PP2)),
    "glm4_moe, experts over context ranks": ("glm4_moe air", (*TP2, *CP2, *EP2, *WHOLE)),
}
"""A model and four ranks."""

Directories = Mapping[str, tuple[str, str]]


def compare_on_rank(
    rank: int,
    world: int,
    directories: Directories,
    cases: Mapping[str, tuple[str, tuple[str, ...]]],
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, (model, flags) in cases.items():
        directory, work = directories[model]
        found[name] = family_case.compare(rank, world, Path(directory), Path(work), flags)
    return found


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Directories:
    made: dict[str, tuple[str, str]] = {}
    for name, model in MODELS.items():
        directory = make_family(
            tmp_path_factory.mktemp("model"), model.model_type, **dict(model.changes)
        )
        work = tmp_path_factory.mktemp("expected")
        family_case.expected(directory, work)
        made[name] = (str(directory), str(work))
    return made


@pytest.fixture(scope="module")
def differences(directories: Directories) -> dict[str, dict[str, float]]:
    alone = {name: (name, ()) for name in MODELS}
    found = run_on_ranks(1, compare_on_rank, directories, alone, megatron=True)[0]
    ranks = run_on_ranks(4, compare_on_rank, directories, DIVIDED, megatron=True)
    for name in DIVIDED:
        keys = {key for rank in ranks for key in rank[name]}
        found[name] = {key: max(rank[name].get(key, 0.0) for rank in ranks) for key in keys}
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(differences: dict[str, dict[str, float]], name: str):
    assert differences[name]["logits"] <= 1e-5


@pytest.mark.parametrize("name", [*MODELS, *DIVIDED])
def test_packed_log_probs_and_all_gradients_are_those_of_transformers(
    differences: dict[str, dict[str, float]], name: str
):
    found = differences[name]
    assert found["log_probs"] <= 1e-5
    assert found["gradient"] <= 1e-4, found
    assert found["norm"] <= 1e-5
