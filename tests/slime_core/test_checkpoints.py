import errno

import pytest
from slime_core.checkpoints import Checkpoints
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.errors import CheckpointError
from slime_core.staging import latest


class Trainer:
    """Writes one file, unless there is something to fail with."""

    def __init__(self):
        self.fails_in_save = self.fails_in_finish = None

    def save(self, directory, iteration):
        (directory / "weights").write_text(str(iteration))
        if self.fails_in_save:
            raise self.fails_in_save

    def finish_save(self, wait):
        if self.fails_in_finish:
            raise self.fails_in_finish
        return True

    def save_hf(self, directory):
        raise AssertionError(directory)


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


def test_other_failures_stay_what_they_are(checkpoints, trainer, tmp_path):
    trainer.fails_in_save = RuntimeError("device-side assert")
    with pytest.raises(RuntimeError, match="device-side"):
        checkpoints.save(1)
    assert latest(tmp_path) == tmp_path / "iter_0000000"
