import json
from pathlib import Path

import pytest
from slime_train.quickstart.report import Durations, ReportError, read_curves, write_summary

RECORDS = [
    {"step": 0, "eval/sums": 0.5},
    {"step": 0, "rollout/raw_reward": 0.4},
    {"step": 0, "train/train_rollout_logprob_abs_diff": 1e-6, "train/loss": None},
    {"step": 1, "rollout/raw_reward": 0.6},
    {"step": 1, "train/train_rollout_logprob_abs_diff": 3e-6},
    {"step": 2, "eval/sums": 0.9},
]


def write_metrics(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_summary_has_the_first_and_last_evaluation_and_the_worst_gap(tmp_path: Path):
    curves = read_curves(write_metrics(tmp_path / "metrics.jsonl", RECORDS), "sums")
    durations = Durations(seconds=3.0, seconds_warm_up=1.0, seconds_reinforce=2.0)
    write_summary(tmp_path / "summary.json", curves.outcome(), durations, seed=7)
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "accuracy_before": 0.5,
        "accuracy_after": 0.9,
        "iterations": 2,
        "train_rollout_logprob_abs_diff": 3e-6,
        "seconds": 3.0,
        "seconds_warm_up": 1.0,
        "seconds_reinforce": 2.0,
        "seed": 7,
    }


def test_the_curve_is_a_png(tmp_path: Path):
    curves = read_curves(write_metrics(tmp_path / "metrics.jsonl", RECORDS), "sums")
    curves.draw(tmp_path / "rewards.png")
    assert (tmp_path / "rewards.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_did_not_get_far_enough_is_said(tmp_path: Path):
    path = write_metrics(tmp_path / "metrics.jsonl", RECORDS[:1])
    with pytest.raises(ReportError, match=r"metrics\.jsonl has no rollout/raw_reward"):
        read_curves(path, "sums")
