import json
from pathlib import Path

import pytest
from slime_core.errors import TrackingError
from slime_core.interfaces import Beginning
from slime_core.reports.tracking import NUM_DROPPED, Fanout, JsonlTracker, NullTracker


class BrokenTracker(NullTracker):
    num_calls = 0

    def log(self, step, metrics):
        self.num_calls += 1
        raise OSError(28, "No space left on device")


def test_a_tracker_that_fails_is_dropped_and_counted_and_the_others_go_on(tmp_path, caplog):
    path, broken = tmp_path / "metrics.jsonl", BrokenTracker()
    tracker = Fanout([broken, JsonlTracker(path)])
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row.get(NUM_DROPPED) for row in rows] == [None, 1.0, 1.0]
    assert broken.num_calls == 1
    assert [r.message for r in caplog.records] == [
        "BrokenTracker gets no numbers any more: OSError: [Errno 28] No space left on device"
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_record_that_cannot_be_written_is_one_clear_error():
    tracker = Fanout([JsonlTracker(Path("/dev/full"))])
    with pytest.raises(TrackingError, match=r"/dev/full.*No space left.*--output-dir"):
        tracker.log(0, {})
    tracker.close()  # says nothing more


def test_a_record_that_cannot_be_opened_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="--output-dir"):
        JsonlTracker(tmp_path / "file" / "metrics.jsonl")


def test_lines_can_be_read_while_the_run_goes_on(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    tracker = Fanout([JsonlTracker(path), NullTracker()])
    tracker.log(0, {"train/loss": 1.5})
    tracker.log(1, {"train/loss": float("nan")})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["train/loss"]) for row in rows] == [(0, 1.5), (1, None)]
    tracker.close()
    again = JsonlTracker(path)
    again.log(2, {})
    again.close()
    assert len(path.read_text().splitlines()) == 3


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def written(path, *rows):
    tracker = JsonlTracker(path)
    for step, metrics in rows:
        tracker.log(step, metrics)
    tracker.close()
    return path


def test_a_run_that_goes_on_leaves_every_step_in_the_file_once(tmp_path):
    path = written(tmp_path / "m.jsonl", *[(step, {"train/loss": 1.0}) for step in (0, 1, 2, 3)])
    with path.open("a") as file:
        file.write('{"step": 3, "ti')  # as a killed run leaves it
    tracker = Fanout([NullTracker(), JsonlTracker(path)])
    tracker.begin(Beginning(2, goes_on=True))
    tracker.log(2, {"train/loss": 2.0})
    tracker.close()
    assert steps_in(path) == [0, 1, 2]
    repeated = (tmp_path / "m-repeated.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in repeated[:2]] == [2, 3]
    assert len(repeated) == 3


@pytest.mark.parametrize(("evaluates", "steps"), [(False, [1, 2]), (True, [1])])
def test_the_evaluation_of_the_weights_it_goes_on_with_stays_unless_it_is_made_again(
    tmp_path, evaluates, steps
):
    path = written(tmp_path / "m.jsonl", (1, {"train/loss": 1.0}), (2, {"eval/sums": 0.5}))
    tracker = JsonlTracker(path)
    tracker.begin(Beginning(2, goes_on=True, evaluates=evaluates))
    tracker.close()
    assert steps_in(path) == steps


def test_numbers_of_another_run_are_moved_away_and_that_is_said(tmp_path):
    path, said = written(tmp_path / "m.jsonl", (0, {"train/loss": 1.0})), []
    tracker = JsonlTracker(path)
    tracker.begin(Beginning(0, goes_on=False, say=said.append))
    tracker.log(0, {"train/loss": 2.0})
    tracker.begin(Beginning(0, goes_on=False))  # begun anew after a loss: no other run
    tracker.log(0, {"train/loss": 3.0})
    tracker.close()
    assert json.loads(path.read_text())["train/loss"] == 3.0
    assert json.loads((tmp_path / "m-1.jsonl").read_text())["train/loss"] == 1.0
    assert said == [f"numbers of an earlier run are now in {tmp_path / 'm-1.jsonl'}"]


def test_a_first_run_and_one_with_nothing_to_take_back_move_nothing(tmp_path):
    fresh = JsonlTracker(tmp_path / "m.jsonl")
    fresh.begin(Beginning(0, goes_on=False, say=pytest.fail))
    fresh.log(0, {})
    fresh.begin(Beginning(1, goes_on=True))
    fresh.close()
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]
