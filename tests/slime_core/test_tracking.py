import json
from pathlib import Path

import pytest
from slime_core.errors import TrackingError
from slime_core.tracking import NUM_DROPPED, Fanout, JsonlTracker, NullTracker


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
