import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slime_core.data.finished import STATE_FILE, FinishedRollouts
from slime_core.errors import CheckpointError, DataError
from slime_core.types import SampleGroup
from slime_testing import make_sample


class Prompts:
    """Counts what it gave out."""

    def __init__(self, position: int = 0) -> None:
        self.position = position

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def produce(self, iteration: int) -> tuple[list[SampleGroup], dict[str, float]]:
        self.position += 1
        sample = make_sample(2, index=self.position, group_index=self.position)
        return [SampleGroup(self.position, (sample,))], {"iteration": float(iteration)}


def made(finished: FinishedRollouts, prompts: Prompts, iteration: int) -> int:
    groups, metrics = finished.make(iteration, prompts.state_dict, prompts.produce)
    assert metrics == {"iteration": float(iteration)}
    return groups[0].group_index


def resumed(state: dict[str, Any]) -> tuple[FinishedRollouts, Prompts]:
    finished = FinishedRollouts()
    return finished, Prompts(finished.load_state_dict(state)["position"])


def test_what_was_finished_ahead_of_a_checkpoint_is_trained_on_after_it() -> None:
    finished, prompts = FinishedRollouts(), Prompts()
    assert [made(finished, prompts, i) for i in range(3)] == [1, 2, 3]
    again, position = resumed(finished.state_dict(0, prompts.state_dict))
    assert [made(again, position, i) for i in (1, 2, 3)] == [2, 3, 4]


def test_a_rollout_under_way_is_begun_again_from_the_same_prompts() -> None:
    finished, prompts = FinishedRollouts(), Prompts()
    made(finished, prompts, 0)
    made(finished, prompts, 1)
    inside, saved = threading.Event(), threading.Event()

    def slowly(iteration: int) -> Any:
        found = prompts.produce(iteration)  # the prompts are taken, nothing is finished
        inside.set()
        assert saved.wait(10)
        return found

    worker = threading.Thread(target=finished.make, args=(2, prompts.state_dict, slowly))
    worker.start()
    assert inside.wait(10)
    state = finished.state_dict(0, prompts.state_dict)
    saved.set()
    worker.join()
    again, position = resumed(state)
    assert [made(again, position, i) for i in (1, 2)] == [2, 3]


class Growing(Prompts):
    """Hands out what it goes on to change, as a user's data source may."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata: dict[str, Any] = {"seen": []}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "metadata": self.metadata}

    def produce(self, iteration: int) -> tuple[list[SampleGroup], dict[str, float]]:
        self.metadata["seen"].append(iteration)
        return super().produce(iteration)


def test_a_position_is_a_copy_of_what_generation_goes_on_to_change() -> None:
    finished, prompts = FinishedRollouts(), Growing()
    made(finished, prompts, 0)
    during: list[dict[str, Any]] = []

    def saving(iteration: int) -> Any:
        found = prompts.produce(iteration)
        during.append(finished.state_dict(0, prompts.state_dict))
        return found

    finished.make(1, prompts.state_dict, saving)
    between = finished.state_dict(0, prompts.state_dict)
    made(finished, prompts, 2)
    assert during[0]["position"] == {"position": 1, "metadata": {"seen": [0]}}
    assert between["position"] == {"position": 2, "metadata": {"seen": [0, 1]}}


def test_where_no_checkpoint_may_come_in_between_the_position_is_not_asked_for() -> None:
    finished, prompts = FinishedRollouts(), Prompts()
    finished.make(0, None, prompts.produce)
    assert finished.state_dict(0, prompts.state_dict)["position"] == {"position": 1}


def test_a_commit_holds_numpys_scalars_of_a_reward_and_refuses_objects(tmp_path: Path) -> None:
    finished, prompts = FinishedRollouts(), Prompts()
    for iteration in range(2):
        made(finished, prompts, iteration)
    (sample,) = finished.make(1, None, prompts.produce)[0][0].samples
    sample.reward, sample.metadata = np.float64(0.5), {"votes": np.arange(2)}
    finished.save(tmp_path, 0, prompts.state_dict)
    again = FinishedRollouts()
    assert again.load(tmp_path) == {"position": 2}
    (read,) = again.make(1, None, prompts.produce)[0][0].samples
    assert (read.reward, read.metadata) == (0.5, {"votes": [0, 1]})
    (tmp_path / STATE_FILE).unlink()
    sample.metadata["judge"] = prompts
    told = r"finished rollouts: \[1\].*\['metadata'\]\['judge'\] is a .*Prompts"
    with pytest.raises(DataError, match=told):
        finished.save(tmp_path, 0, prompts.state_dict)
    assert not (tmp_path / STATE_FILE).exists()
    with pytest.raises(CheckpointError, match=r"has no rollout\.pt.*--finetune"):
        again.load(tmp_path)


def test_what_no_checkpoint_can_hold_is_refused_with_the_first_rollout_and_says_whose() -> None:
    prompts = Prompts()

    def judged(iteration: int) -> Any:
        groups, metrics = prompts.produce(iteration)
        groups[0].samples[0].metadata["verdict"] = prompts
        return groups, metrics

    told = r"\['metadata'\]\['verdict'\] is a .*Prompts, .*: --custom-rm-path own\.judge$"
    finished = FinishedRollouts("--custom-rm-path own.judge")
    with pytest.raises(DataError, match=told):
        finished.make(0, prompts.state_dict, judged)
    assert FinishedRollouts().make(0, None, judged)  # where none is written, it may be there


def test_a_rollout_that_failed_leaves_the_position_to_the_prompts() -> None:
    finished, prompts = FinishedRollouts(), Prompts()

    def failing(iteration: int) -> Any:
        raise OSError("no engine")

    with pytest.raises(OSError, match="no engine"):
        finished.make(0, prompts.state_dict, failing)
    assert finished.state_dict(0, prompts.state_dict) == {
        "position": {"position": 0},
        "finished": {},
    }


def test_only_what_may_still_be_needed_is_kept() -> None:
    finished, prompts = FinishedRollouts(), Prompts()
    for i in range(5):
        made(finished, prompts, i)
    finished.drop(through=2)
    assert len(finished) == 2
    assert list(finished.state_dict(3, prompts.state_dict)["finished"]) == [4]
