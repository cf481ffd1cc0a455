import json

from slime_core.tracking import Fanout, JsonlTracker, NullTracker


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
