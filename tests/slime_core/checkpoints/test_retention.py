"""Which checkpoints stay, and that nothing else is ever deleted."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slime_core.checkpoints.commit import Checkpoints
from slime_core.checkpoints.retention import EXPORT, spared, superfluous
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.reference import ReferenceConfig
from slime_core.files import staging
from slime_core.files.staging import clean, complete, latest, staged


class Trainer:
    """Writes a file of weights, and another into each export; done at once, or when told."""

    def __init__(self) -> None:
        self.is_written = True

    def save(self, directory, iteration):
        (directory / "weights").write_text(str(iteration))

    def finish_save(self, wait):
        return wait or self.is_written

    def save_hf(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.safetensors").write_text(directory.name)


class Rollout:
    def save(self, directory, iteration):
        (directory / "rollout.pt").write_text(str(iteration))


def checkpoints(trainer=None, named=(), **config):
    config = {name: str(v) if isinstance(v, Path) else v for name, v in config.items()}
    return Checkpoints(CheckpointConfig(**config), trainer or Trainer(), Rollout(), named)


def saved(save: Path) -> list[int]:
    return [int(path.name.removeprefix("iter_")) for path in complete(save)]


@pytest.fixture
def save(tmp_path: Path) -> Path:
    return tmp_path / "save"


@pytest.mark.parametrize(
    ("newest", "interval", "kept"),
    [
        (1, None, [14]),
        (3, None, [10, 12, 14]),
        (20, None, [0, 2, 4, 6, 8, 10, 12, 14]),
        (1, 5, [4, 14]),
        (2, 5, [4, 12, 14]),
        (1, 7, [6, 14]),  # 13 was not saved
    ],
)
def test_the_newest_and_the_multiples_of_iterations_done_are_kept(newest, interval, kept):
    there = [0, 2, 4, 6, 8, 10, 12, 14]
    gone = superfluous(there, 14, newest=newest, interval=interval)
    assert [i for i in there if i not in gone] == kept


@given(
    st.sets(st.integers(0, 60)),
    st.integers(0, 60),
    st.integers(1, 6),
    st.none() | st.integers(1, 10),
)
def test_what_goes_is_older_than_as_many_as_are_kept_and_no_multiple(there, last, newest, every):
    gone = superfluous(there, last, newest=newest, interval=every)
    past = {i for i in there if i < last} | {last}
    for i in sorted(there | {last}):
        younger = sum(other > i for other in past)
        goes = i < last and younger >= newest and not (every and (i + 1) % every == 0)
        assert (i in gone) == goes, i
    assert gone == sorted(gone)


@pytest.mark.parametrize("async_save", [False, True])
def test_a_run_keeps_as_many_as_it_was_told_and_goes_on_from_the_newest(save, async_save):
    made = checkpoints(save=save, save_retain_newest=2, async_save=async_save)
    for iteration in range(5):
        made.save(iteration)
    made.finish(wait=True)
    assert saved(save) == [3, 4]
    assert latest(save) == save / "iter_0000004"
    assert sorted(p.name for p in save.iterdir() if p.name.startswith(".")) == []


def test_without_either_flag_everything_stays(save):
    made = checkpoints(save=save)
    for iteration in range(4):
        made.save(iteration)
    assert saved(save) == [0, 1, 2, 3]


def test_an_interval_alone_keeps_its_multiples_and_the_newest(save):
    made = checkpoints(save=save, save_retain_interval=2)
    for iteration in range(5):
        made.save(iteration)
    assert saved(save) == [1, 3, 4]


def test_a_command_that_reads_from_nowhere_spares_nothing():
    assert spared(CheckpointConfig(save="here"), ReferenceConfig(), "") == frozenset()


def test_nothing_is_deleted_for_a_checkpoint_that_is_still_being_written(save):
    trainer = Trainer()
    made = checkpoints(trainer, save=save, save_retain_newest=1, async_save=True)
    made.save(0)
    trainer.is_written = False
    made.save(1)
    made.finish(wait=False)
    assert saved(save) == [0]
    trainer.is_written = True
    made.finish(wait=False)
    assert saved(save) == [1]


def test_nothing_is_deleted_for_a_checkpoint_that_failed(save):
    trainer = Trainer()
    made = checkpoints(trainer, save=save, save_retain_newest=1)
    made.save(0)
    trainer.finish_save = lambda wait: 1 / 0
    with pytest.raises(ZeroDivisionError):
        made.save(1)
    assert saved(save) == [0]


def test_a_run_that_went_back_leaves_what_it_is_about_to_replace(save):
    first = checkpoints(save=save)
    for iteration in (1, 3, 5, 7):
        first.save(iteration)
    checkpoints(save=save, save_retain_newest=1).save(3)
    assert saved(save) == [3, 5, 7]


def test_only_what_slime_wrote_into_the_runs_own_directory_is_deleted(save, tmp_path):
    other = tmp_path / "other"
    with staged(other, 1) as directory:
        (directory / "weights").touch()
    save.mkdir()
    (save / "iter_0000001").symlink_to(other / "iter_0000001")  # another run's
    (save / "iter_0000002").mkdir()  # another program's: no manifest
    (save / "iter_0000003-best").mkdir()
    with staged(save, "release") as directory:
        (directory / "weights").touch()
    made = checkpoints(save=save, save_retain_newest=1)
    for iteration in (4, 5):
        made.save(iteration)
    assert sorted(p.name for p in save.iterdir() if p.is_dir()) == [
        "iter_0000001", "iter_0000002", "iter_0000003-best", "iter_0000005", "release",
    ]  # fmt: skip
    assert (other / "iter_0000001" / "weights").exists()


def test_a_checkpoint_that_the_command_reads_from_stays(save):
    started = checkpoints(save=save)
    for iteration in range(4):
        started.save(iteration)
    config = CheckpointConfig(
        save=str(save), load=str(save), ckpt_step=1, save_hf="hf-{rollout_id}", save_retain_newest=1
    )
    named = spared(config, ReferenceConfig(ref_load=str(save), ref_ckpt_step=2), "/models/tiny")
    checkpoints(named=named, save=save, save_retain_newest=1).save(4)
    assert saved(save) == [1, 2, 4]


@pytest.mark.parametrize(("where", "kept"), [("save", []), ("linked", []), ("elsewhere", [2])])
def test_what_load_finds_without_a_step_stays_unless_it_is_the_runs_own(
    save, tmp_path, where, kept
):
    started = checkpoints(save=save)
    for iteration in range(3):
        started.save(iteration)
    (tmp_path / "linked").symlink_to(save)
    (tmp_path / "elsewhere").mkdir()  # names a checkpoint in --save by a link
    (tmp_path / "elsewhere" / "iter_0000002").symlink_to(save / "iter_0000002")
    (tmp_path / "elsewhere" / staging.TRACKER).write_text("2")
    config = CheckpointConfig(save=str(save), load=str(tmp_path / where))
    named = spared(config, ReferenceConfig(), "")
    checkpoints(named=named, save=save, save_retain_newest=1).save(3)
    assert saved(save) == [*kept, 3]


def test_the_one_the_tracker_names_stays_even_if_another_was_committed_after_it(save, monkeypatch):
    made = checkpoints(save=save, save_retain_newest=1)
    made.save(0)
    monkeypatch.setattr(staging, "replace_file", lambda path, text: None)  # a tracker left behind
    made.save(1)
    assert saved(save) == [0, 1]


class Killed(BaseException):
    """In place of SIGKILL."""


def test_a_run_killed_while_it_deletes_leaves_nothing_that_looks_whole(save, monkeypatch):
    made = checkpoints(save=save, save_retain_newest=1)
    made.save(0)

    def killed(path):
        (Path(path) / "weights").unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        made.save(1)
    monkeypatch.undo()
    assert saved(save) == [1]
    assert latest(save) == save / "iter_0000001"
    assert clean(save) == [".iter_0000000.deleted"]
    assert sorted(p.name for p in save.iterdir()) == ["iter_0000001", staging.TRACKER]


def test_a_failure_to_delete_is_a_warning_now_and_at_the_next_start(save, monkeypatch, caplog):
    made = checkpoints(save=save, save_retain_newest=1)
    made.save(0)

    def busy(path):
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    with caplog.at_level(logging.WARNING):
        made.save(1)
        clean(save)
    told = [r.getMessage() for r in caplog.records if r.name.startswith("slime_core.")]
    assert [message.partition(" could not")[0] for message in told] == [
        f"{save}/iter_0000000",
        f"{save}/.iter_0000000.deleted",
    ]
    assert latest(save) == save / "iter_0000001"


@pytest.mark.parametrize("has_save", [True, False])
def test_exports_go_with_their_iterations(save, tmp_path, has_save):
    where = {"save": save} if has_save else {}
    template = str(tmp_path / "hf" / "{rollout_id}")
    made = checkpoints(**where, save_hf=template, save_retain_newest=2)
    for iteration in range(3):
        made.save(iteration)
    if has_save:  # a run that is resumed knows of the exports of its checkpoints
        made = checkpoints(**where, save_hf=template, save_retain_newest=2)
    made.save(3)
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == ["2", "3"]


def test_an_export_without_a_number_is_the_newest_ones_too(save, tmp_path):
    made = checkpoints(save=save, save_hf=str(tmp_path / "hf"), save_retain_newest=1)
    for iteration in range(3):
        made.save(iteration)
    assert (tmp_path / "hf" / "model.safetensors").exists()


@pytest.mark.parametrize("change", ["replaced", "added to", "the model"])
def test_an_export_that_is_somebody_elses_by_now_stays(save, tmp_path, change, caplog):
    export = tmp_path / "hf-0"
    template = str(tmp_path / "hf-{rollout_id}")
    named = spared(CheckpointConfig(), ReferenceConfig(), str(export))
    made = checkpoints(
        named=named if change == "the model" else (),
        save=save,
        save_hf=template,
        save_retain_newest=1,
    )
    made.save(0)
    if change == "replaced":
        (export / "model.safetensors").write_text("another run's")
    elif change == "added to":
        (export / "results.json").write_text("{}")
    made.save(1)
    assert (export / "model.safetensors").exists()
    assert saved(save) == [1]
    assert ("hf-0 is kept: it was changed" in caplog.text) == (change != "the model")


def test_an_export_that_cannot_be_deleted_is_tried_again_as_its_checkpoint_knows_of_it(
    save, tmp_path, monkeypatch
):
    template = str(tmp_path / "hf-{rollout_id}")
    made = checkpoints(save=save, save_hf=template, save_retain_newest=1)
    made.save(0)

    def busy(path):
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    made.save(1)
    monkeypatch.undo()
    assert saved(save) == [0, 1]
    assert not (tmp_path / "hf-0").exists()
    made.save(2)
    assert saved(save) == [2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf-2", "save"]


def test_a_damaged_record_of_an_export_costs_the_checkpoint_alone(save, tmp_path, caplog):
    made = checkpoints(save=save, save_hf=str(tmp_path / "hf-{rollout_id}"), save_retain_newest=1)
    made.save(0)
    record = save / "iter_0000000" / EXPORT
    assert json.loads(record.read_text())["directory"] == str(tmp_path / "hf-0")
    record.write_text("{")
    made.save(1)
    assert saved(save) == [1]
    assert (tmp_path / "hf-0").is_dir()
    assert "the export it tells of is kept" in caplog.text
