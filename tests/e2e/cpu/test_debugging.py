"""Half a run: generating alone, and training again on what was generated."""

import pytest
from slime_core.data.dump import read_dump
from slime_core.types import samples_of
from slime_testing.runs import run, series, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ITERATIONS = 3


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("debugging")
    model, sums = make_qwen3(root / "model"), write_sums(root / "sums.jsonl", 24)
    run(
        "--debug-rollout-only", *command(root, model), "--prompt-data", sums,
        "--rm-type", "random", "--output-dir", root / "generated",
        "--eval-prompt-data", "sums", sums, "--eval-max-response-len", 2,
        "--save-debug-rollout-data", root / "dump-{rollout_id}.pt",
    )  # fmt: skip
    return root, model


def command(root, model, num_rollout=ITERATIONS):
    return [
        "--hf-checkpoint", model, "--num-rollout", num_rollout, "--rollout-batch-size", 4,
        "--n-samples-per-prompt", 2, "--micro-batch-size", 4, "--rollout-max-response-len", 6,
        "--lr", "1e-2",
    ]  # fmt: skip


def replay(root, model, name, *more, num_rollout=ITERATIONS):
    return run(
        *command(root, model, num_rollout), "--load-debug-rollout-data",
        root / "dump-{rollout_id}.pt", "--output-dir", root / name, *more,
    )  # fmt: skip


def test_generating_alone_dumps_and_evaluates_and_trains_nothing(generated):
    root, _ = generated
    samples = [
        sample
        for iteration in range(ITERATIONS)
        for sample in samples_of(read_dump(str(root / "dump-{rollout_id}.pt"), iteration))
    ]
    assert len(samples) == ITERATIONS * 8
    assert all(sample.reward in (0.0, 1.0) for sample in samples)
    assert set(series(root / "generated", "rollout/raw_reward")) == set(range(ITERATIONS))
    assert series(root / "generated", "eval/sums")
    assert series(root / "generated", "train/loss") == {}


def test_one_iteration_is_repeated_from_its_dump_and_passes_its_checks(generated):
    root, model = generated
    norms, save = root / "norms" / "{role}_{rollout_id}_{step_id}", root / "save"
    saved = ["--save", save, "--save-interval", 1]
    replay(root, model, "whole", *saved, "--ci-test", "--ci-save-grad-norm", norms)
    again = ["--load", save, "--ckpt-step", 0, "--start-rollout-id", 1]
    replay(root, model, "again", *again, "--ci-load-grad-norm", norms, num_rollout=2)
    for name in ("train/grad_norm", "train/loss", "rollout/log_probs"):
        whole, repeated = (series(root / run, name) for run in ("whole", "again"))
        assert repeated == {1: whole[1]}, name
