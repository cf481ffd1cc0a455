import pytest
from slime_core.reports.skipped_steps import NothingTrainedError, SkippedSteps


def after(*skipped: float, steps: int = 2) -> SkippedSteps:
    """A run whose iterations left out so many of their steps."""
    count = SkippedSteps(steps)
    for number in skipped:
        count.log({"rollout/raw_reward": 1.0})
        count.log({"train/num_skipped_steps": number})
    return count


def test_a_run_whose_every_step_was_left_out_is_no_success():
    with pytest.raises(NothingTrainedError, match="all 4 steps of this run were left out"):
        after(2.0, 2.0).check()


@pytest.mark.parametrize("skipped", [(), (0.0,), (2.0, 1.0), (2.0, 0.0)])
def test_one_step_that_was_taken_is_enough(skipped: tuple[float, ...]):
    after(*skipped).check()
