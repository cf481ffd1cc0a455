"""A rank of the trainer that is killed, or stopped: the run recovers by itself."""

import hashlib
import os
import signal

import pytest
from slime_core.processes.events import FILE_NAME, read_events
from slime_testing.runs import Hold, Run, carriers, run, series, wait_for, write_sums
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

    hold, path = Hold(tmp_path / "hold", 1, 3), disturbed / "out" / FILE_NAME
    process = Run(*command(inputs, disturbed), *hold.training)
    assert wait_for(lambda: hold.is_at(1), seconds=START_S)
    signal_rank(path, signal.SIGKILL)
    hold.end(1)
    assert wait_for(lambda: hold.is_at(3), seconds=START_S)
    signal_rank(path, signal.SIGSTOP)
    hold.end(3)
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
