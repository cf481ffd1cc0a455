"""Whole runs whose samples carry more than a reward: a greedy answer, a teacher, a preference."""

import json
import os
import signal

import pytest
import torch
from slime_core.processes.events import read_events
from slime_testing.runs import TIMEOUT_S, Hold, Run, run, series, wait_for, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("rollout_side")
    return make_qwen3(root / "model"), write_sums(root / "sums.jsonl", 24)


def command(inputs, directory, *more):
    model, sums = inputs
    return [
        "--hf-checkpoint", model, "--prompt-data", sums, "--num-rollout", 2,
        "--rollout-batch-size", 4, "--micro-batch-size", 4, "--rollout-max-response-len", 6,
        "--lr", "1e-2", "--output-dir", directory / "out",
        "--save-debug-rollout-data", directory / "{rollout_id}.pt", *more,
    ]  # fmt: skip


def groups(directory, iteration):
    return torch.load(directory / f"{iteration}.pt", weights_only=True)["groups"]


def test_remax_learns_from_what_is_better_than_the_greedy_answer(inputs, tmp_path):
    file = tmp_path / "even.py"
    file.write_text("def even(args, sample, **kwargs):\n    return float(sample.tokens[-1] % 2)\n")
    more = ["--advantage-estimator", "remax", "--n-samples-per-prompt", 2]
    run(*command(inputs, tmp_path, *more, "--custom-rm-path", f"{file}:even"))
    for iteration in (0, 1):
        found = groups(tmp_path, iteration)
        assert all(group["baseline"] in (0.0, 1.0) for group in found)
        mean = sum(group["baseline"] for group in found) / len(found)
        assert series(tmp_path / "out", "rollout/greedy_reward")[iteration] == mean
        versions = {v for g in found for s in g["samples"] for v in s["token_versions"]}
        assert versions == {iteration}
    assert all(norm > 0 for norm in series(tmp_path / "out", "train/grad_norm").values())


@pytest.fixture(scope="module")
def distilled(inputs, tmp_path_factory):
    """A run from an engine with its teacher, which is killed before it has judged anything."""
    root = tmp_path_factory.mktemp("distilled")
    hold = Hold(root / "hold", 0)
    teacher = make_qwen3(root / "teacher", seed=5)
    process = Run(
        *command(inputs, root, "--use-opd", "--opd-type", "sglang"),
        *("--opd-teacher-load", teacher, "--n-samples-per-prompt", 2, "--use-fault-tolerance"),
        *hold.generating,
    )
    assert wait_for(lambda: hold.is_at(0), 500)
    (up,) = told(root, "process", name="teacher_engine_0")
    os.kill(up["pid"], signal.SIGKILL)
    assert wait_for(lambda: told(root, "lost", pid_lost=up["pid"]), 60)
    hold.end(0)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    return root, up["pid"]


def told(root, event, **fields):
    file = root / "out" / "events.jsonl"
    found = read_events(file) if file.exists() else []
    return [e for e in found if {**e, "event": event, **fields} == e]


def samples_of(root):
    return [s for i in (0, 1) for g in groups(root, i) for s in g["samples"]]


def test_a_policy_is_distilled_from_an_engine_with_its_teacher(distilled):
    root, _ = distilled
    samples = samples_of(root)
    assert {s["reward"] for s in samples} == {0.0}
    assert all(len(s["teacher_log_probs"]) == s["response_length"] for s in samples)
    apart = [
        abs(a - b)
        for s in samples
        for a, b in zip(s["teacher_log_probs"], s["rollout_log_probs"], strict=True)
    ]
    assert max(apart) > 0.01
    assert all(norm > 0 for norm in series(root / "out", "train/grad_norm").values())


def test_a_teacher_that_is_killed_is_started_again_and_every_sample_is_judged(distilled):
    root, killed = distilled
    assert [e["pid_lost"] for e in told(root, "lost")] == [killed]
    assert len(samples_of(root)) == 16


@pytest.mark.parametrize("loss", ["dpo_loss", "rm_loss"])
def test_preferences_are_learnt_without_engines(loss, inputs, tmp_path):
    rows = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": "7" * 3} for i in range(8)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = command((inputs[0], path), tmp_path, "--loss-type", loss, "--num-rollout", 4)
    run(*words)
    losses = series(tmp_path / "out", "train/loss")
    assert list(losses) == [0, 1, 2, 3]
    assert losses[3] < losses[0]
