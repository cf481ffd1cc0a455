import signal

import pytest
from slime_testing.runs import Hold, Run, metrics, run, series, wait_for, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("fine_tuning")
    return make_qwen3(root / "model"), write_sums(root / "sums.jsonl", 40)


def command(inputs, directory, **flags):
    model, sums = inputs
    words = [
        "--hf-checkpoint", model, "--prompt-data", sums, "--apply-chat-template",
        "--loss-type", "sft_loss", "--rollout-shuffle", "--num-rollout", 6,
        "--rollout-batch-size", 16, "--global-batch-size", 8, "--micro-batch-size", 4,
        "--lr", "1e-3", "--output-dir", directory / "out", "--save", directory / "save",
        "--save-interval", 1,
    ]  # fmt: skip
    return [*words, *(word for pair in flags.items() for word in pair)]


def test_a_killed_run_continues_as_if_it_had_not_been_however_it_was_started(inputs, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*command(inputs, whole))
    expected = series(whole / "out", "train/loss")
    assert list(expected) == [0, 1, 2, 3, 4, 5]
    assert expected[5] < expected[0]

    hold = Hold(tmp_path / "hold", 3)
    process = Run(*command(inputs, killed), *hold.training)
    assert wait_for(lambda: hold.is_at(3), seconds=300)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(series(killed / "out", "train/loss")) == [0, 1, 2]

    hold.end(3)
    output = run(*command(inputs, killed), *hold.training)
    assert "continuing from" in output
    assert series(killed / "out", "train/loss") == expected
    assert series(killed / "out", "train/grad_norm") == series(whole / "out", "train/grad_norm")
    assert sorted(p.name for p in (killed / "save").glob(".iter_*")) == []

    # flags for the start count once; the directory is one run's; exports come before commits
    started, hold = tmp_path / "started", Hold(tmp_path / "another hold", 4)
    more = ["--load", whole / "save", "--ckpt-step", 2, "--finetune", "--no-load-rng"]
    more += ["--async-save", "--save-interval", 2, "--save-hf", started / "hf-{rollout_id}"]
    more += hold.training
    process = Run(*command(inputs, started), *more)
    assert wait_for(lambda: hold.is_at(4), seconds=300)
    assert (started / "save" / "iter_0000001").is_dir(), "committed before the next is written"
    refused = run(*command(inputs, started), *more, expect=1)
    assert f"another run that has not ended: pid {process.pid}" in " ".join(refused.split())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hold.end(4)
    output = " ".join(run(*command(inputs, started), *more).split())
    assert "iter_0000002 (--load)" not in output
    assert "--finetune, --no-load-rng, --ckpt-step counted when the run began" in output
    steps = [row["step"] for row in metrics(started / "out") if "train/loss" in row]
    assert (steps.count(0), steps[-1]) == (1, 5)
    assert sorted(p.name for p in started.glob("hf-*")) == ["hf-1", "hf-3", "hf-5"]
