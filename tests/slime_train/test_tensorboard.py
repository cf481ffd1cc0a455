from pathlib import Path

from slime_core.interfaces import Beginning, Rewinding
from slime_train.trackers.tensorboard import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def run(directory: Path, first: int, last: int, loss: float) -> None:
    """One start of a run, with a file of its own."""
    tracker = TensorBoardTracker(directory)
    assert isinstance(tracker, Rewinding)
    tracker.begin(Beginning(first, goes_on=first > 0))
    for step in range(first, last):
        tracker.log(step, {"train/loss": loss})
    tracker.close()


def shown(directory: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory)).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def test_steps_that_are_made_again_are_shown_once(tmp_path: Path):
    run(tmp_path, 0, 4, loss=1.0)
    run(tmp_path, 2, 4, loss=2.0)
    assert shown(tmp_path) == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)]


def test_another_run_in_the_same_directory_hides_the_first(tmp_path: Path):
    run(tmp_path, 0, 3, loss=1.0)
    run(tmp_path, 0, 1, loss=2.0)
    assert shown(tmp_path) == [(0, 2.0)]
