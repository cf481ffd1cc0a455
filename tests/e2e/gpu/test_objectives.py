"""Every objective on a GPU takes the steps it takes on a CPU, but for what bfloat16 rounds."""

import math
from pathlib import Path

import pytest
import torch
from slime_testing.objectives import OBJECTIVES, PAIRS
from slime_testing.ranks import run_on_ranks, run_side_by_side
from slime_testing.tiny import make_qwen3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
GENTLE = "--lr=1e-3"
NOT_COMPARED = ("perf/", "clipfrac")
"""Timings; shares of tokens that rounding moves over a threshold."""


def steps(
    rank: int, ranks: int, model: str, device: str, *flags: str
) -> dict[str, dict[str, float]]:
    """Of every objective the metrics of one step, and of a second one after it."""
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_given, make_payload

    found: dict[str, dict[str, float]] = {}
    for name, sections in OBJECTIVES.items():
        torch.compiler.reset()  # what it made is for the model and the ranks of another trainer
        batch = make_batch(pairs=name in PAIRS)
        given = make_given(batch) if name == "critic" else {}
        config = make_config(Path(model), *flags, device=device, **sections)
        trainer = TrainerRank(config, rank, ranks)
        trainer.initialize(f"file://{model}/rendezvous" if device == "cuda" else None)
        payload = make_payload(
            batch, ParallelLayout(), config.batch, 0, whole_rollouts=name in PAIRS
        )
        found[name] = dict(trainer.train(0, payload, given))
        second = trainer.train(1, payload, given)
        found[name] |= {f"second {key}": value for key, value in second.items()}
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, float]]]:
    model = str(make_qwen3(tmp_path_factory.mktemp("objectives") / "model", **SIZES))
    fast = ("--bf16", "--use-distributed-optimizer")
    return {
        "float32": run_on_ranks(1, steps, model, "cpu", GENTLE, megatron=True)[0],
        "bfloat16": run_side_by_side(1, steps, model, "cuda", GENTLE, *fast)[0],
    }


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_gpu_takes_the_steps_of_a_cpu(
    found: dict[str, dict[str, dict[str, float]]], objective: str
) -> None:
    exact, rounded = (found[kind][objective] for kind in ("float32", "bfloat16"))
    assert exact.keys() - rounded.keys() == set()
    for name in exact:
        if not any(word in name for word in NOT_COMPARED):
            # The second step feels what was rounded in the first.
            tolerance = 0.1 if name.startswith("second") else 0.03
            assert math.isclose(rounded[name], exact[name], rel_tol=tolerance, abs_tol=2e-3), name
