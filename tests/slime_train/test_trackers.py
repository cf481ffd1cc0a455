import json
from pathlib import Path

import pytest
from slime_core.config.tracking import TrackingConfig
from slime_core.reports.tracking import tensorboard_directory
from slime_train.trackers import open_trackers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_numbers_are_readable_in_both_places_before_the_end(tmp_path: Path):
    trackers = open_trackers(TrackingConfig(), tmp_path, {})
    trackers.log(3, {"train/loss": 0.25})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["step"], line["train/loss"]) == (3, 0.25)
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(3, 0.25)]


def test_tensorboard_can_be_switched_off(tmp_path: Path):
    open_trackers(TrackingConfig(use_tensorboard=False), tmp_path, {}).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_goes_where_project_and_experiment_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run7"
    monkeypatch.delenv("TENSORBOARD_DIR", raising=False)
    assert tensorboard_directory(TrackingConfig(), run) == run / "tensorboard"
    monkeypatch.setenv("TENSORBOARD_DIR", "tb")
    assert tensorboard_directory(TrackingConfig(), run) == Path("tb/run7")
    named = TrackingConfig(tb_project_name="p", tb_experiment_name="e")
    assert tensorboard_directory(named, run) == Path("p/e")
