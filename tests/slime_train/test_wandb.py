"""Weights & Biases' own package, offline: what it wrote is read back from its file."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slime_core.config.tracking import TrackingConfig
from slime_core.reports.wandb_tracker import RUN_ID
from slime_testing.runs import wait_for
from slime_train.trackers import open_trackers
from wandb.proto.wandb_internal_pb2 import Record

SECRET = "0123456789abcdef0123456789abcdef01234567"
_BLOCK, _HEADER = 32768, 7


def records(path: Path) -> Iterator[Record]:
    """What a ``.wandb`` file holds: LevelDB's log format, whose chunks have length and kind."""
    data, at, whole = path.read_bytes(), _HEADER, b""
    while at < len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # a chunk's head does not fit: zeros
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        whole += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(whole)
            whole = b""


def written(directory: Path) -> list[Record]:
    """All records, once the process of the package has written the last one."""
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    assert wait_for(lambda: "exit" in {kind(record) for record in records(path)}, 60)
    return list(records(path))


def kind(record: Record) -> str | None:
    return record.WhichOneof("record_type")


def row(record: Record) -> dict[str, Any]:
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for item in record.history.item
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["slime-train", "--wandb-key", SECRET, "--lr", "1"])
    directory = tmp_path / "run7"
    config = TrackingConfig(
        use_tensorboard=False,
        use_wandb=True,
        wandb_mode="offline",
        wandb_key=SECRET,
        wandb_project="sums",
    )
    values = {
        "num_steps_per_rollout": 2,
        "wandb_key": SECRET,
        "lr": 1e-6,
    }
    trackers = open_trackers(config, directory, values)
    trackers.log(0, {"train/loss": 0.5, "rollout/raw_reward": 0.25})
    trackers.log(1, {"train/loss": 0.125, "rollout/raw_reward": float("nan")})
    trackers.close()
    return directory


def test_its_file_holds_rows_axes_and_configuration_and_no_key(run: Path):
    found = written(run)
    rows = [row(record) for record in found if kind(record) == "history"]
    losses = [(r["train/step"], r["rollout/step"], r["train/loss"]) for r in rows]
    assert losses == [(0, 0, 0.5), (2, 1, 0.125)]
    (started,) = [r.run for r in found if kind(r) == "run"]
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert (config["lr"], config["wandb_key"]) == (1e-6, "(hidden)")
    assert started.run_id == (run / RUN_ID).read_text().strip()
    assert (started.project, started.display_name) == ("sums", f"run7_{started.run_id}")
    axes = {r.metric.glob_name or r.metric.name: r.metric.step_metric for r in found}
    assert (axes["train/*"], axes["*"]) == ("train/step", "rollout/step")
    (end,) = [r.exit for r in found if kind(r) == "exit"]
    assert end.exit_code == 0
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 2
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_disabled_means_that_nothing_is_written(tmp_path: Path):
    config = TrackingConfig(use_tensorboard=False, use_wandb=True, wandb_mode="disabled")
    open_trackers(config, tmp_path, {}).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
