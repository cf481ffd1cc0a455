"""Optimizer steps that were left out, because a gradient was infinite or not a number."""

from slime_core.errors import SlimeError
from slime_core.interfaces import Metrics

SKIPPED = "num_skipped_steps"
_OF_POLICY = f"train/{SKIPPED}"


class NothingTrainedError(SlimeError, FloatingPointError):
    """Every step of a run was left out."""


class SkippedSteps:
    """Counts over the iterations of one run of the policy."""

    def __init__(self, steps_per_iteration: int) -> None:
        """``steps_per_iteration``: how many there are where none is left out."""
        self._steps = max(1, steps_per_iteration)
        self._num_skipped = 0
        self._num_trained = 0

    def log(self, metrics: Metrics) -> None:
        """Take the numbers of a stage; those of other stages than training say nothing."""
        if _OF_POLICY in metrics:
            skipped = round(metrics[_OF_POLICY])
            self._num_skipped += skipped
            self._num_trained += skipped < self._steps

    def check(self) -> None:
        """At the end of a run.

        Raises:
            NothingTrainedError: no iteration took a step, though some were to be taken.
        """
        if self._num_skipped and not self._num_trained:
            raise NothingTrainedError(
                f"all {self._num_skipped} steps of this run were left out, because the gradient "
                "was infinite or not a number: the weights are those it began with. Look for "
                "rewards, log-probabilities or a custom loss that are not finite, or lower --lr"
            )


def note(metrics: Metrics) -> str:
    """What a row of the table says about steps left out; empty where there are none."""
    found = (metrics.get(f"{role}/{SKIPPED}", 0.0) for role in ("train", "critic"))
    number = round(sum(found))
    if not number:
        return ""
    return f"  {number} step{'s' if number > 1 else ''} skipped: gradient not finite"
