"""What functions of users are called with and have to return."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from slime_core.data.filters import DynamicFilterOutput
from slime_core.types import Sample

RewardValue = float | dict[str, Any]


@runtime_checkable
class GenerateFunction(Protocol):
    """--custom-generate-function-path: completes one sample."""

    async def __call__(
        self, sample: Sample, sampling_params: Mapping[str, Any], *, evaluation: bool
    ) -> Sample | list[Sample]:
        """The finished sample, or the segments it split into."""
        ...


@runtime_checkable
class RewardFunction(Protocol):
    """--custom-rm-path: rewards of some samples, one each."""

    async def __call__(self, samples: Sequence[Sample]) -> list[RewardValue]:
        """In the order of ``samples``."""
        ...


@runtime_checkable
class DynamicFilter(Protocol):
    """--dynamic-sampling-filter-path: whether a finished group is trained on."""

    def __call__(self, samples: Sequence[Sample]) -> DynamicFilterOutput:
        """The verdict on one group."""
        ...


@runtime_checkable
class RewardPostProcess(Protocol):
    """--custom-reward-post-process-path: replaces group normalisation."""

    def __call__(self, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
        """Raw rewards, and rewards to learn from."""
        ...


@runtime_checkable
class SampleFilter(Protocol):
    """--rollout-sample-filter-path: sets ``remove_sample`` on samples of the collected groups."""

    def __call__(self, groups: Sequence[list[Sample]]) -> None:
        """Change the samples in place."""
        ...


@runtime_checkable
class SampleHook(Protocol):
    """--rollout-sample-hook-path: sees every generated sample before its reward."""

    async def __call__(
        self, sample: Sample, *, rollout_id: int | None, evaluation: bool
    ) -> Sample | None:
        """A sample to go on with, or None for the same one."""
        ...
