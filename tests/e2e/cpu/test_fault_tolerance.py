"""A run whose engine and router are killed and stopped while they generate."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from slime_core.data.dump import read_dump
from slime_core.processes.events import read_events
from slime_core.types import samples_of
from slime_testing.runs import TIMEOUT_S, Hold, Run, carriers, run, wait_for, write_sums
from slime_testing.tiny import make_qwen3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ITERATIONS = 4
INTERVAL_S, TIMEOUT_ANSWER_S = 1.0, 20.0
BUSY_S = 30.0
"""What a machine with other work may add to a bound."""
RECOVERED_S = 400.0
"""A minute on an idle machine; starting an engine takes several times that beside other work."""
FAULTS = {
    1: ("engine_0", signal.SIGKILL),
    2: ("engine_0", signal.SIGSTOP),
    3: ("router", signal.SIGKILL),
}
"""In which iteration's generation, whom, with what: when the first response is there."""


def words(root: Path, out: Path) -> list[object]:
    return [
        "--hf-checkpoint", root / "model", "--prompt-data", root / "sums.jsonl",
        "--num-rollout", ITERATIONS, "--rollout-batch-size", 8, "--n-samples-per-prompt", 4,
        "--global-batch-size", 32, "--micro-batch-size", 8, "--rollout-max-response-len", 128,
        "--lr", "1e-2", "--custom-rm-path", f"{root / 'even.py'}:even",
        "--save-debug-rollout-data", out / "{rollout_id}.pt", "--output-dir", out,
        "--save-hf", out / "hf-{rollout_id}", "--save-interval", ITERATIONS,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    make_qwen3(root / "model")
    write_sums(root / "sums.jsonl", 32)
    code = "def even(args, sample, **kwargs):\n    return float(sample.tokens[-1] % 2)\n"
    (root / "even.py").write_text(code)
    return root


@pytest.fixture(scope="module")
def undisturbed(inputs) -> Path:
    run(*words(inputs, inputs / "undisturbed"))
    return inputs / "undisturbed"


@pytest.fixture(scope="module")
def disturbed(inputs) -> tuple[Path, list[int]]:
    """Where it wrote, and whom it lost."""
    out, victims = inputs / "disturbed", []
    hold = Hold(inputs / "hold", *FAULTS)
    process = Run(
        *words(inputs, out), *hold.generating, "--use-fault-tolerance",
        "--rollout-health-check-interval", INTERVAL_S,
        "--rollout-health-check-timeout", TIMEOUT_ANSWER_S,
    )  # fmt: skip
    try:
        for iteration, (name, number) in FAULTS.items():
            assert wait_for(lambda i=iteration: ended(process) or hold.is_at(i), 300), told(process)
            assert not ended(process), told(process)
            victims.append(pid_of(out, name))
            os.kill(victims[-1], number)
            assert wait_for(lambda: ended(process) or is_lost(out, victims[-1]), 300), told(process)
            hold.end(iteration)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(told(process)) from None
    assert process.returncode == 0, output
    assert wait_for(lambda: not carriers(process.mark), 30), carriers(process.mark)
    return out, victims


def ended(process: Run) -> bool:
    return process.poll() is not None


def is_lost(out: Path, pid: int) -> bool:
    events = read_events(out / "events.jsonl")
    return any((event["event"], event.get("pid_lost")) == ("lost", pid) for event in events)


def told(process: Run) -> str:
    process.kill()
    return process.communicate(timeout=60)[0]


def pid_of(out: Path, name: str) -> int:
    found = [
        event["pid"]
        for event in read_events(out / "events.jsonl")
        if event["event"] == "process" and event["name"] == name
    ]
    return found[-1]


def test_every_loss_is_noticed_in_time_and_made_up_for(disturbed):
    out, victims = disturbed
    events = read_events(out / "events.jsonl")
    lost = {event["pid_lost"]: event for event in events if event["event"] == "lost"}
    for pid, (name, number) in zip(victims, FAULTS.values(), strict=True):
        stopped = number is signal.SIGSTOP
        assert (lost[pid]["name"], lost[pid]["how"]) == (name, "hang" if stopped else "exit")
        bound = INTERVAL_S + TIMEOUT_ANSWER_S if stopped else 0.2
        assert lost[pid]["seconds"] <= bound + BUSY_S
    back = [event for event in events if event["event"] == "recovered"]
    assert len(back) == len(lost)
    assert max(event["seconds"] for event in back) <= RECOVERED_S
    assert not [event for event in events if event["event"] == "gave_up"]


def test_the_samples_are_those_of_an_undisturbed_run(disturbed, undisturbed):
    for iteration in range(ITERATIONS):
        found = samples_of(read_dump(str(disturbed[0] / "{rollout_id}.pt"), iteration))
        wanted = samples_of(read_dump(str(undisturbed / "{rollout_id}.pt"), iteration))
        assert [s.tokens for s in found] == [s.tokens for s in wanted]
        assert {v for s in found for v in s.token_versions} == {iteration}


def test_the_weights_are_those_of_an_undisturbed_run(disturbed, undisturbed):
    from safetensors.torch import load_file

    name = f"hf-{ITERATIONS - 1}"
    (mine,) = (disturbed[0] / name).glob("*.safetensors")
    (theirs,) = (undisturbed / name).glob("*.safetensors")
    found, wanted = load_file(mine), load_file(theirs)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
