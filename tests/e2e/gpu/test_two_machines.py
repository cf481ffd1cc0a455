"""Trainer and engine of each of two machines take turns on its GPU; Ray simulates the machines."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster
from slime_core.data.dump import read_dump
from slime_core.processes.events import read_events
from slime_core.types import samples_of
from slime_testing.runs import TIMEOUT_S, Run, series, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

ITERATIONS = 3
SIZES = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
REWARD = "def even(args, sample, **kwargs):\n    return float(sample.tokens[-1] % 2)\n"


@pytest.fixture(scope="module")
def two_machines() -> Iterator[Cluster]:
    """Each sees a GPU of its own, and calls it its first."""
    cluster = Cluster()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
    try:
        for gpu in visible[:2]:
            cluster.add_node(num_cpus=8, num_gpus=1, env_vars={"CUDA_VISIBLE_DEVICES": gpu})
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def out(two_machines: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("machines")
    (root / "even.py").write_text(REWARD)
    out = root / "out"
    process = Run(
        "--hf-checkpoint", make_qwen3(root / "model", **SIZES),
        "--prompt-data", write_sums(root / "sums.jsonl", 16),
        "--num-rollout", ITERATIONS, "--rollout-batch-size", 8, "--n-samples-per-prompt", 4,
        "--global-batch-size", 32, "--rollout-max-response-len", 96, "--lr", "1e-3",
        "--custom-rm-path", f"{root / 'even.py'}:even", "--output-dir", out,
        "--save-debug-rollout-data", out / "{rollout_id}.pt",
        "--bf16", "--use-distributed-optimizer", "--colocate",
        "--actor-num-nodes", 2, "--actor-num-gpus-per-node", 1, "--num-gpus-per-node", 1,
        "--rollout-num-gpus", 2, "--rollout-num-gpus-per-engine", 1,
        "--sglang-mem-fraction-static", 0.3,
        *os.environ.get("SLIME_TEST_ENGINE_FLAGS", "").split(),
        ray_address=two_machines.address,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(process.communicate(timeout=60)[0]) from None
    assert process.returncode == 0, output
    return out


def test_each_machine_has_an_engine_on_its_own_gpu(out: Path) -> None:
    launchers = [
        e["name"] for e in read_events(out / "events.jsonl") if e.get("kind") == "launcher"
    ]
    assert sorted(launchers) == ["launcher 0", "launcher 1"]
    for number in range(2):
        log = (out / "logs" / f"launcher-{number}.log").read_text()
        (started,) = [line for line in log.splitlines() if "starting engine" in line]
        assert f"engine_{number}:" in started


def test_engines_of_both_machines_serve_what_both_trained(out: Path) -> None:
    for iteration in range(ITERATIONS):
        samples = samples_of(read_dump(str(out / "{rollout_id}.pt"), iteration))
        assert {v for s in samples for v in s.token_versions} == {iteration}
    differences = series(out, "train/train_rollout_logprob_abs_diff")
    print(differences)
    assert list(differences) == list(range(ITERATIONS))
    assert 0 < max(differences.values()) < 0.02
