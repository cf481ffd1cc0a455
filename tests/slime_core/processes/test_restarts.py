import pytest
from slime_core.errors import EngineError, SlimeError
from slime_core.files.staging import staged
from slime_core.processes.events import Events, read_events
from slime_core.processes.heartbeat import ProcessLost
from slime_core.processes.restarts import Restarts


def lost(name="trainer rank 1"):
    return ProcessLost(
        f"{name} has ended\nits log", kind="trainer_rank", name=name, pid=7, how="exit", seconds=1.5
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def make(tmp_path, path, limit=2):
    said: list[str] = []
    return Restarts(limit, str(tmp_path / "save"), Events(path), said.append), said


def test_a_lost_process_is_recovered_by_another_attempt(tmp_path, path):
    restarts, said = make(tmp_path, path)
    attempts: list[int] = []

    def attempt():
        attempts.append(1)
        restarts.ready()
        if len(attempts) == 1:
            raise lost()

    restarts.run(attempt)
    assert len(attempts) == 2
    assert [event["event"] for event in read_events(path)] == ["lost", "recovered"]
    assert said[0] == (
        "trainer rank 1 has ended; starting again from its last checkpoint (1 of 2 times)"
    )
    assert said[1].startswith("recovered from the loss of trainer rank 1 in ")


def test_losses_without_progress_stop_with_one_diagnosis(tmp_path, path):
    restarts, _ = make(tmp_path, path)
    attempts: list[str] = []

    def attempt():
        attempts.append("")
        raise lost(f"trainer rank {len(attempts)}")

    with pytest.raises(SlimeError, match=r"3 processes were lost .*--max-restarts 2") as raised:
        restarts.run(attempt)
    assert len(attempts) == 3
    assert all(f"trainer rank {i} (pid 7): exit" in str(raised.value) for i in (1, 2, 3))
    assert "The last one: trainer rank 3 has ended\nits log" in str(raised.value)
    assert read_events(path)[-1]["event"] == "gave_up"


def test_a_commit_in_between_starts_the_count_anew(tmp_path, path):
    restarts, _ = make(tmp_path, path, limit=1)
    attempts: list[int] = []

    def attempt():
        attempts.append(1)
        if len(attempts) < 5:
            with staged(tmp_path / "save", len(attempts)):
                pass
            raise lost()

    restarts.run(attempt)
    assert len(attempts) == 5


def test_without_fault_tolerance_the_first_loss_ends_the_run(tmp_path, path):
    restarts, _ = make(tmp_path, path, limit=None)

    def attempt():
        raise lost()

    with pytest.raises(SlimeError, match=r"(?s)has ended.*--use-fault-tolerance"):
        restarts.run(attempt)
    assert [event["event"] for event in read_events(path)] == ["lost"]


def test_other_failures_are_not_tried_again(tmp_path, path):
    restarts, _ = make(tmp_path, path)

    def attempt():
        raise EngineError("no")

    with pytest.raises(EngineError):
        restarts.run(attempt)
