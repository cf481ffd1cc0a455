"""Where a command goes on from, the first time and after its run was begun again."""

from dataclasses import replace
from pathlib import Path

import pytest
from slime_core.checkpoints.resume import Origin, Resume, going_on
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.evaluation import EvalConfig
from slime_core.errors import CheckpointError
from slime_core.files.staging import TRACKER, staged


def commit(save: Path, *iterations: int) -> None:
    for iteration in iterations:
        with staged(save, iteration) as directory:
            (directory / "weights").write_text(str(iteration))


@pytest.fixture
def save(tmp_path: Path) -> Path:
    return tmp_path / "save"


@pytest.fixture
def load(tmp_path: Path) -> Path:
    commit(tmp_path / "load", 3, 6)
    return tmp_path / "load"


def resume(config: CheckpointConfig, start: int | None = None) -> tuple[Resume, list[str]]:
    said: list[str] = []
    return Resume(config, start, said.append), said


def test_flags_for_the_start_count_until_the_run_has_a_checkpoint_of_its_own(
    save: Path, load: Path
) -> None:
    config = CheckpointConfig(load=str(load), save=str(save), finetune=True, no_load_rng=True)
    command, said = resume(config, start=4)
    assert command.find() == Origin(load / "iter_0000006", own=False)
    commit(save, 4)
    for again in (command, resume(config, start=4)[0]):
        assert again.find() == Origin(save / "iter_0000004", own=True)
    assert said == [
        f"continuing from {load}/iter_0000006 (--load)",
        f"continuing from {save}/iter_0000004 (--save); --finetune, --no-load-rng, "
        "--start-rollout-id counted when the run began: to begin anew give another --save",
    ]


def test_a_run_that_goes_on_takes_everything_from_its_checkpoint() -> None:
    given = CheckpointConfig(finetune=True, no_load_optim=True, no_load_rng=True, ckpt_step=3)
    assert going_on(given) == CheckpointConfig(ckpt_step=3)


@pytest.mark.parametrize("flag", ["finetune", "no_load_optim"])
def test_an_optimizer_that_is_never_saved_is_begun_anew_each_time(flag: str) -> None:
    given = replace(CheckpointConfig(no_save_optim=True), **{flag: True})
    assert going_on(given) == CheckpointConfig(no_save_optim=True, no_load_optim=True)


def test_weights_converted_into_the_directory_for_saving_are_not_the_runs_own(save: Path) -> None:
    (save / "release").mkdir(parents=True)
    (save / TRACKER).write_text("release")
    command, _ = resume(CheckpointConfig(load=str(save), save=str(save), finetune=True))
    assert command.find() == Origin(save / "release", own=False)


def test_ckpt_step_of_another_directory_counts_when_the_run_begins(save: Path, load: Path) -> None:
    command, said = resume(CheckpointConfig(load=str(load), save=str(save), ckpt_step=3))
    assert command.find().directory == load / "iter_0000003"
    commit(save, 4)
    assert command.find() == Origin(save / "iter_0000004", own=True)
    assert "--ckpt-step counted when the run began" in said[-1]


def test_ckpt_step_goes_back_in_the_runs_own_directory_once(save: Path) -> None:
    commit(save, 3, 6)
    config = CheckpointConfig(load=f"{save}/", save=str(save), ckpt_step=3)
    command, said = resume(config)
    assert [command.find().directory, command.find().directory] == [save / "iter_0000003"] * 2
    assert "counted" not in said[-1]
    commit(save, 4)
    assert command.find() == Origin(save / "iter_0000004", own=True)
    commit(save, 6)  # the number that was the newest before
    assert command.find() == Origin(save / "iter_0000006", own=True)


def test_a_damaged_checkpoint_says_how_to_take_an_older_one_and_that_works(save: Path) -> None:
    commit(save, 3, 6)
    (save / "iter_0000006" / "weights").unlink()
    config = CheckpointConfig(save=str(save))
    with pytest.raises(CheckpointError) as told:
        resume(config)[0].find()
    assert "weights is missing; checkpoints present: iter_0000003, iter_0000006" in str(told.value)
    assert f"give --load {save} --ckpt-step N beside --save {save}" in str(told.value)
    found = resume(replace(config, load=str(save), ckpt_step=3))[0].find()
    assert found == Origin(save / "iter_0000003", own=True)


def test_without_any_checkpoint_a_run_begins(save: Path, tmp_path: Path) -> None:
    command, said = resume(CheckpointConfig(load=str(tmp_path), save=str(save)))
    assert command.find() == Origin(None, own=False)
    assert said == []


def test_a_run_that_has_done_all_its_iterations_is_over_and_says_so(save: Path) -> None:
    command, said = resume(CheckpointConfig(save=str(save)))
    assert not command.is_over(5, EvalConfig())
    commit(save, 2, 4)
    assert not command.is_over(6, EvalConfig())
    assert not command.is_over(0, EvalConfig())  # only evaluates
    assert not command.is_over(None, EvalConfig())
    assert not said
    assert command.is_over(5, EvalConfig())
    evaluated = EvalConfig(eval_function_path="mine.py:evaluate")
    assert not resume(CheckpointConfig(save=str(save)))[0].is_over(5, evaluated)
    assert command.is_over(5, replace(evaluated, skip_eval_before_train=True))
    said.pop()
    assert said == [
        f"all 5 iterations of --num-rollout 5 are done; the last checkpoint is {save}/iter_0000004 "
        "(--save). A larger --num-rollout goes on from there"
    ]


def test_one_that_begins_again_from_an_earlier_checkpoint_in_place_is_not_over(save: Path) -> None:
    commit(save, 2, 4)
    config = CheckpointConfig(save=str(save), load=str(save), ckpt_step=2)
    assert not resume(config)[0].is_over(5, EvalConfig())
