"""A run over two machines, which Ray simulates on this one: engines and ranks are on both."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster
from slime_core.data.dump import read_dump
from slime_core.processes.events import read_events
from slime_core.processes.this_machine import network_address
from slime_core.types import samples_of
from slime_testing.runs import TIMEOUT_S, Run, series, wait_for, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ITERATIONS = 3
REWARD = """
import asyncio
from pathlib import Path

async def even(args, sample, **kwargs):
    while max(sample.token_versions) == 1 and not Path("{go}").exists():
        await asyncio.sleep(0.1)
    return float(sample.tokens[-1] % 2)
"""
"""The second iteration ends when it may."""


@pytest.fixture(scope="module")
def two_machines():
    """With as many CPUs as the run has processes there: more would not be placed."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    try:
        cluster.add_node(num_cpus=3)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def finished(two_machines, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Where it wrote, and its events; the engine of the second machine was killed meanwhile."""
    root = tmp_path_factory.mktemp("machines")
    (root / "even.py").write_text(REWARD.format(go=root / "go"))
    out = root / "out"
    process = Run(
        "--hf-checkpoint", make_qwen3(root / "model"),
        "--prompt-data", write_sums(root / "sums.jsonl", 16),
        "--num-rollout", ITERATIONS, "--rollout-batch-size", 8, "--n-samples-per-prompt", 4,
        "--global-batch-size", 32, "--micro-batch-size", 8, "--rollout-max-response-len", 96,
        "--lr", "1e-2", "--custom-rm-path", f"{root / 'even.py'}:even", "--output-dir", out,
        "--save-debug-rollout-data", out / "{rollout_id}.pt", "--offload",
        "--actor-num-nodes", 2, "--rollout-num-engines", 2,
        "--use-fault-tolerance", "--max-restarts", 0, "--rollout-health-check-interval", 1.0,
        "--reward-call-timeout-s", TIMEOUT_S,
        ray_address=two_machines.address,
    )  # fmt: skip

    def events() -> list[dict]:
        file = out / "events.jsonl"
        return read_events(file) if file.exists() else []

    def generates(iteration: int) -> bool:
        begun = {"event": "phase", "name": "generate", "iteration": iteration, "begin": True}
        return process.poll() is not None or any(
            begun.items() <= event.items() for event in events()
        )

    def recovered() -> bool:
        return any(event["event"] == "recovered" for event in events())

    try:
        assert wait_for(lambda: generates(1), TIMEOUT_S)
        (victim,) = [event["pid"] for event in events() if event.get("name") == "engine_1"]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: process.poll() is not None or recovered(), TIMEOUT_S)
        (root / "go").touch()
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except (subprocess.TimeoutExpired, AssertionError, ValueError):
        process.kill()
        raise AssertionError(process.communicate(timeout=60)[0]) from None
    assert process.returncode == 0, output
    return out, events()


def test_each_machine_has_a_launcher_and_the_engines_that_it_started(finished):
    out, events = finished
    launchers = [event["name"] for event in events if event.get("kind") == "launcher"]
    assert sorted(launchers) == ["launcher 0", "launcher 1"]
    for number in range(2):
        log = (out / "logs" / f"launcher-{number}.log").read_text()
        started = [line for line in log.splitlines() if "starting engine" in line]
        assert len(started) == 1 + number
        assert all(f"engine_{number}:" in line for line in started)
        assert all(f"--host {network_address()}" in line for line in started)


def test_an_engine_lost_on_the_second_machine_is_started_again(finished):
    _, events = finished
    (lost,) = [event for event in events if event["event"] == "lost"]
    assert lost["name"] == "engine_1"
    back = [event for event in events if event["event"] == "recovered"]
    assert [event["name"] for event in back] == ["engine_1"]
    pids = [e["pid"] for e in events if e["event"] == "process" and e["name"] == "engine_1"]
    assert len(set(pids)) == 2


def test_engines_of_both_machines_serve_what_was_trained(finished):
    out, _ = finished
    for iteration in range(ITERATIONS):
        samples = samples_of(read_dump(str(out / "{rollout_id}.pt"), iteration))
        assert {v for s in samples for v in s.token_versions} == {iteration}
    differences = series(out, "train/train_rollout_logprob_abs_diff")
    assert list(differences) == list(range(ITERATIONS))
    assert 0 < max(differences.values()) <= 1e-4


def test_nothing_is_left_of_it_on_either_machine(finished):
    _, events = finished
    pids = {event["pid"] for event in events if event["event"] == "process"}
    assert wait_for(lambda: not any(map(psutil.pid_exists, pids)), 60)
