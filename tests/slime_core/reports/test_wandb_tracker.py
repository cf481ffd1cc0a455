import importlib.util
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slime_core.config.draft import Draft, Facts
from slime_core.config.rules.tracking import weights_and_biases
from slime_core.config.tracking import TrackingConfig
from slime_core.errors import TrackingError
from slime_core.reports.tracking import NUM_DROPPED, Fanout
from slime_core.reports.wandb_tracker import FINISH_S, RUN_ID, WandbTracker

SECRET = "0123456789abcdef0123456789abcdef01234567"
VALUES = {"num_steps_per_rollout": 2}


class StandIn:
    """The module ``wandb`` as far as the tracker uses it; keeps what it is told."""

    Settings = SimpleNamespace

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.url, self.dir = "https://example.org/run", "files"
        self.started: dict[str, Any] = {}
        self.axes: dict[str, str] = {}
        self.rows: list[dict[str, float]] = []
        self.exit_code: int | None = None

    def init(self, **given: Any) -> "StandIn":
        if self.fails is not None:
            raise self.fails
        self.started = given
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        if step_metric is not None:
            self.axes[name] = step_metric

    def log(self, row: dict[str, float]) -> None:
        if self.fails is not None:
            raise self.fails
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def start(config: TrackingConfig, directory: Path, **values: Any) -> tuple[WandbTracker, StandIn]:
    package = StandIn()
    return WandbTracker(package, config, directory, {**VALUES, **values}), package


@pytest.fixture(autouse=True)
def _plain_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["slime-train", "--wandb-key", SECRET, "--lr", "1"])
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_an_iteration_of_two_steps_counts_twice_on_the_axis_of_training(tmp_path: Path):
    tracker, package = start(TrackingConfig(), tmp_path)
    tracker.log(3, {"train/loss": 0.5})
    assert package.rows == [{"train/loss": 0.5, "train/step": 6, "rollout/step": 3, "eval/step": 3}]
    assert package.axes == {
        "*": "rollout/step",
        "train/*": "train/step",
        "eval/*": "eval/step",
    }


def test_one_axis_for_everything_counts_steps(tmp_path: Path):
    tracker, package = start(TrackingConfig(wandb_always_use_train_step=True), tmp_path)
    tracker.log(3, {})
    assert package.rows == [{"train/step": 6, "rollout/step": 6, "eval/step": 6}]


def test_flags_arrive_where_the_package_wants_them(tmp_path: Path):
    config = TrackingConfig(
        wandb_project="sums",
        wandb_team="us",
        wandb_group="night",
        wandb_host="https://wandb.example.org",
        wandb_dir=str(tmp_path / "files"),
        wandb_random_suffix=False,
    )
    started = start(config, tmp_path / "run7")[1].started
    named = {name: started[name] for name in ("project", "entity", "group", "name", "resume")}
    assert named == {
        "project": "sums",
        "entity": "us",
        "group": "night",
        "name": "night",
        "resume": "allow",
    }
    assert vars(started["settings"]) == {
        "root_dir": str(tmp_path / "files"),
        "base_url": "https://wandb.example.org",
        "finish_timeout": FINISH_S,
        "console": "off",
        "quiet": True,
    }
    assert (tmp_path / "files").is_dir()


def test_a_run_is_named_after_its_directory_and_its_id(tmp_path: Path):
    started = start(TrackingConfig(), tmp_path / "run7")[1].started
    assert started["name"] == f"run7_{started['id']}"
    assert started["group"] is None


def test_a_resumed_training_goes_on_with_the_run_that_its_checkpoints_name(tmp_path: Path):
    save = str(tmp_path / "save")
    first = start(TrackingConfig(), tmp_path / "monday", save=save)[1].started["id"]
    again = start(TrackingConfig(), tmp_path / "tuesday", save=save)[1].started["id"]
    other = start(TrackingConfig(), tmp_path / "tuesday")[1].started["id"]
    same = start(TrackingConfig(), tmp_path / "tuesday")[1].started["id"]
    assert first == again == (tmp_path / "save" / RUN_ID).read_text().strip()
    assert first != other == same


def test_a_run_that_is_given_is_continued_and_not_kept(tmp_path: Path):
    started = start(TrackingConfig(wandb_run_id="abc"), tmp_path)[1].started
    assert started["id"] == "abc"
    assert not (tmp_path / RUN_ID).exists()


def test_the_key_goes_into_the_settings_and_nowhere_else(tmp_path: Path):
    values = {"wandb_key": SECRET, "sglang_api_key": SECRET, "label_key": "answer", "at": Path("x")}
    started = start(TrackingConfig(wandb_key=SECRET), tmp_path, **values)[1].started
    assert started["settings"].api_key == SECRET
    assert SECRET not in str({**started, "settings": None})
    assert (started["config"]["label_key"], started["config"]["at"]) == ("answer", "x")
    assert sys.argv == ["slime-train", "--wandb-key", "(hidden)", "--lr", "1"]


def test_a_refusal_says_what_to_do_without_the_key(tmp_path: Path):
    package = StandIn(fails=ValueError(f"user {SECRET} is unknown"))
    with pytest.raises(TrackingError) as caught:
        WandbTracker(package, TrackingConfig(wandb_key=SECRET), tmp_path, VALUES)
    text = str(caught.value)
    assert "ValueError: user (hidden) is unknown" in text
    assert "--wandb-mode offline" in text
    assert str(tmp_path / RUN_ID) in text


def test_the_end_waits_for_a_bounded_time_and_tells_success_from_failure(tmp_path: Path):
    fine, package = start(TrackingConfig(), tmp_path)
    assert 0 < package.started["settings"].finish_timeout <= 60
    fine.close()
    assert package.exit_code == 0
    failed, package = start(TrackingConfig(), tmp_path)
    with pytest.raises(KeyError), ExitStack() as stack:  # noqa: PT012 - as a run closes it
        stack.callback(failed.close)
        raise KeyError
    assert package.exit_code == 1


def test_a_run_goes_on_without_it_when_it_fails_later(tmp_path: Path, caplog: Any):
    tracker, package = start(TrackingConfig(), tmp_path)
    other_tracker, other = start(TrackingConfig(), tmp_path)
    package.fails = OSError("the service died")
    fanout = Fanout([other_tracker, tracker])
    fanout.log(0, {"train/loss": 0.5})
    fanout.log(1, {"train/loss": 0.25})
    assert "WandbTracker gets no numbers any more: OSError: the service died" in caplog.text
    assert [row["train/loss"] for row in other.rows] == [0.5, 0.25]
    assert [row.get(NUM_DROPPED) for row in other.rows] == [None, 1.0]


def draft(**given: Any) -> Draft:
    found = Draft()
    for name in TrackingConfig.__dataclass_fields__:
        found.own.put(name, getattr(TrackingConfig(), name), "default")
    found.own.put("dump_config", False, "default")
    for name, value in given.items():
        found.own.put(name, value, "--" + name)
    weights_and_biases(found, Facts())
    return found


def test_a_missing_package_is_a_problem_of_runs_that_need_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("slime_core.config.rules.tracking.find_spec", lambda name: None)
    assert "pip install 'slime-train[wandb]'" in draft(use_wandb=True).problems[0]
    assert draft().problems == []
    assert draft(use_wandb=True, dump_config=True).problems == []
    assert draft(use_wandb=True, wandb_mode="disabled").problems == []


def test_a_directory_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wandb").mkdir()
    found = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setattr("slime_core.config.rules.tracking.find_spec", lambda name: found)
    assert len(draft(use_wandb=True).problems) == 1


def test_flags_without_the_switch_are_noted():
    notes = draft(wandb_project="sums", wandb_random_suffix=False).notices
    assert notes == [
        "--wandb-project, --disable-wandb-random-suffix without --use-wandb: "
        "nothing goes to Weights & Biases"
    ]
    assert "nothing goes" in draft(use_wandb=True, wandb_mode="disabled").notices[0]


def test_an_address_without_its_scheme_is_refused():
    assert "must begin with http" in draft(use_wandb=True, wandb_host="w.example.org").problems[0]
