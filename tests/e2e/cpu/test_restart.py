"""A rank of the trainer that is killed, or stopped: the run recovers by itself."""

import hashlib
import os
import signal

import pytest
from slime_core.processes.events import FILE_NAME, read_events
from slime_testing.runs import Run, carriers, run, series, wait_for, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
START_S = 300
HEARTBEAT_TIMEOUT_S = 30.0
"""Half of the default; a rank that imports on a busy machine may be silent for seconds."""
BUSY_S = 30.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("restart")
    return make_qwen3(root / "model"), write_sums(root / "sums.jsonl", 40)


def command(inputs, directory):
    model, sums = inputs
    return [
        "--hf-checkpoint", model, "--prompt-data", sums, "--apply-chat-template",
        "--loss-type", "sft_loss", "--rollout-shuffle", "--num-rollout", 5,
        "--rollout-batch-size", 16, "--global-batch-size", 8, "--micro-batch-size", 4,
        "--actor-num-gpus-per-node", 2,
        "--lr", "1e-3", "--output-dir", directory / "out", "--save", directory / "save",
        "--save-interval", 1, "--save-hf", directory / "hf-{rollout_id}",
        "--use-fault-tolerance", "--heartbeat-timeout-s", HEARTBEAT_TIMEOUT_S,
    ]  # fmt: skip


def recovered(path):
    return [e for e in read_events(path) if e["event"] == "recovered"]


def weights(directory):
    """SHA-256 of what the run learned."""
    [path] = sorted((directory / "hf-4").glob("*.safetensors"))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trains(path, iteration):
    """Whether the loop has begun to train on an iteration; the last event of this kind counts."""
    told = [e["iteration"] for e in read_events(path) if e.get("begin") and e["name"] == "train"]
    return told[-1:] == [iteration]


def signal_rank(path, signum):
    """To the latest process that was rank 1 of the trainer."""
    victims = [
        e["pid"]
        for e in read_events(path)
        if (e["event"], e.get("name")) == ("process", "trainer rank 1")
    ]
    os.kill(victims[-1], signum)


def test_a_rank_that_ends_and_one_that_hangs_are_replaced_and_nothing_changes(inputs, tmp_path):
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    run(*command(inputs, whole))

    process, path = Run(*command(inputs, disturbed)), disturbed / "out" / FILE_NAME
    assert wait_for(lambda: trains(path, 1), seconds=START_S)
    signal_rank(path, signal.SIGKILL)
    assert wait_for(lambda: recovered(path) and trains(path, 3), seconds=START_S)
    signal_rank(path, signal.SIGSTOP)
    output, _ = process.communicate(timeout=2 * START_S)
    assert process.returncode == 0, output
    assert wait_for(lambda: not carriers(process.mark), 30), carriers(process.mark)

    lost = [e for e in read_events(path) if e["event"] == "lost"]
    assert [(e["kind"], e["name"], e["how"]) for e in lost] == [
        ("trainer_rank", "trainer rank 1", "exit"), ("trainer_rank", "trainer rank 1", "hang")
    ]  # fmt: skip
    assert lost[0]["seconds"] < BUSY_S
    assert HEARTBEAT_TIMEOUT_S < lost[1]["seconds"] < HEARTBEAT_TIMEOUT_S + BUSY_S
    assert len(recovered(path)) == 2
    assert "starting again from its last checkpoint (1 of 3 times)" in " ".join(output.split())
    assert series(disturbed / "out", "train/loss") == series(whole / "out", "train/loss")
    assert weights(disturbed) == weights(whole)
