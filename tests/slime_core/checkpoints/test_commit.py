import errno

import pytest
from slime_core.checkpoints.commit import Checkpoints
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.errors import CheckpointError
from slime_core.files.staging import TRACKER, latest


class Trainer:
    """Writes one file, unless there is something to fail with."""

    def __init__(self):
        self.fails_in_save = self.fails_in_finish = self.fails_in_export = None
        self.is_written = True

    def save(self, directory, iteration):
        (directory / "weights").write_text(str(iteration))
        if self.fails_in_save:
            raise self.fails_in_save

    def finish_save(self, wait):
        if self.fails_in_finish:
            raise self.fails_in_finish
        return wait or self.is_written

    def save_hf(self, directory):
        if self.fails_in_export:
            raise self.fails_in_export
        assert not (directory.parent / TRACKER).is_file()  # not committed
        directory.mkdir()


class Rollout:
    def save(self, directory, iteration):
        (directory / "rollout").write_text(str(iteration))


@pytest.fixture
def trainer():
    return Trainer()


@pytest.fixture
def checkpoints(tmp_path, trainer):
    made = Checkpoints(CheckpointConfig(save=str(tmp_path)), trainer, Rollout())
    made.save(0)
    return made


def full(number=errno.ENOSPC):
    return OSError(number, "No space left on device")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("when", ["fails_in_save", "fails_in_finish"])
def test_a_full_disk_is_named_and_the_last_commit_stays(
    checkpoints, trainer, tmp_path, number, when
):
    setattr(trainer, when, full(number))
    with pytest.raises(CheckpointError, match=r"no room .* iter_0000000 is there and complete"):
        checkpoints.save(1)
    assert latest(tmp_path) == tmp_path / "iter_0000000"
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    setattr(trainer, when, None)
    checkpoints.save(2)
    assert latest(tmp_path) == tmp_path / "iter_0000002"


def test_lack_of_room_is_found_behind_the_error_of_another_process(checkpoints, trainer):
    trainer.fails_in_save = RuntimeError("trainer rank 1 failed during `save`")
    trainer.fails_in_save.__cause__ = full()
    with pytest.raises(CheckpointError, match="--save"):
        checkpoints.save(1)


def test_lack_of_room_is_found_in_the_words_of_a_rank(checkpoints, trainer):
    words = "the checkpoint could not be written; rank 0: OSError: [Errno 28] No space left on"
    trainer.fails_in_finish = CheckpointError(words)
    with pytest.raises(CheckpointError, match=r"--save .* iter_0000000 is there and complete"):
        checkpoints.save(1)


def test_other_failures_stay_what_they_are(checkpoints, trainer, tmp_path):
    trainer.fails_in_save = RuntimeError("device-side assert")
    with pytest.raises(RuntimeError, match="device-side"):
        checkpoints.save(1)
    assert latest(tmp_path) == tmp_path / "iter_0000000"


def exporting(tmp_path, trainer, **more):
    save_hf = str(tmp_path / "hf-{rollout_id}")
    return Checkpoints(
        CheckpointConfig(save=str(tmp_path), save_hf=save_hf, **more), trainer, Rollout()
    )


def test_weights_are_exported_before_the_commit_after_which_nobody_would(trainer, tmp_path):
    exporting(tmp_path, trainer).save(4)
    assert (tmp_path / "hf-4").is_dir()
    assert latest(tmp_path) == tmp_path / "iter_0000004"


@pytest.mark.parametrize("async_save", [False, True])
def test_an_export_without_room_costs_no_checkpoint_and_says_how_to_make_it(
    trainer, tmp_path, async_save
):
    trainer.fails_in_export = full()
    trainer.is_written = not async_save
    told = r"--save-hf .*hf-4: there is no room .* slime-convert dist-to-hf --dist .*hf-4"
    with pytest.raises(CheckpointError, match=told):
        exporting(tmp_path, trainer, async_save=async_save).save(4)
    assert latest(tmp_path) == tmp_path / "iter_0000004"


@pytest.mark.parametrize(
    "failure",
    [
        CheckpointError("cannot write hf-4: [Errno 20] Not a directory"),
        CheckpointError("hf-4 is not empty and was not written by slime: choose another directory"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
)
def test_an_export_that_has_no_place_costs_no_checkpoint(trainer, tmp_path, failure):
    trainer.fails_in_export = failure
    with pytest.raises(CheckpointError) as caught:
        exporting(tmp_path, trainer).save(4)
    assert f"hf-4: {failure}, but the checkpoint in" in str(caught.value)
    assert "slime-convert dist-to-hf" in str(caught.value)
    assert latest(tmp_path) == tmp_path / "iter_0000004"


@pytest.mark.parametrize(
    "failure", [RuntimeError("device-side assert"), ConnectionResetError("the rank is gone")]
)
def test_an_export_that_fails_otherwise_is_made_again_with_its_iteration(
    trainer, tmp_path, failure
):
    trainer.fails_in_export = failure
    with pytest.raises(type(failure), match=str(failure)):
        exporting(tmp_path, trainer).save(4)
    assert latest(tmp_path) is None


def test_an_asynchronous_save_is_committed_when_it_is_found_written(trainer, tmp_path):
    trainer.is_written = False
    made = Checkpoints(CheckpointConfig(save=str(tmp_path), async_save=True), trainer, Rollout())
    made.save(0)
    made.finish(wait=False)
    assert latest(tmp_path) is None
    trainer.is_written = True
    made.finish(wait=False)
    assert latest(tmp_path) == tmp_path / "iter_0000000"
