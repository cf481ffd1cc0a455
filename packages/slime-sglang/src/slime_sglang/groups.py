"""Finish one group: generate its samples at once, run the hooks, score them."""

import asyncio
from collections.abc import Sequence

from slime_core.errors import SampleError
from slime_core.hooks import SampleHook
from slime_core.interfaces import Generate, Reward
from slime_core.types import Sample, SampleGroup, Status

from slime_sglang.transcript import complete_versions


class GroupWorker:
    """Generation, hooks and reward of whole groups."""

    def __init__(
        self, generate: Generate, reward: Reward, *, hooks: Sequence[SampleHook] = ()
    ) -> None:
        self._generate = generate
        self._reward = reward
        self._hooks = tuple(hooks)

    async def finish(
        self, group: SampleGroup, *, iteration: int | None, evaluation: bool = False
    ) -> SampleGroup:
        """The group with every sample generated and scored; unscored if any was aborted.

        A sample that an earlier iteration finished is left as it is.
        """
        parts = await asyncio.gather(
            *(self._one(sample, iteration, evaluation) for sample in group.samples)
        )
        samples = tuple(sample for part in parts for sample in part)
        finished = SampleGroup(group.group_index, samples)
        if is_unfinished(finished):
            return finished
        for sample in samples:
            complete_versions(sample)
            sample.validate()
        await self._reward([sample for sample in samples if sample.reward is None])
        return finished

    async def _one(self, sample: Sample, iteration: int | None, evaluation: bool) -> list[Sample]:
        if sample.status not in (Status.PENDING, Status.ABORTED):
            return [sample]
        made = await self._generate(sample)
        segments = made if isinstance(made, list) else [made]
        _check_segments(sample, segments)
        for hook in self._hooks:
            replaced = [
                await hook(segment, rollout_id=iteration, evaluation=evaluation)
                for segment in segments
            ]
            pairs = zip(replaced, segments, strict=True)
            segments = [new if new is not None else old for new, old in pairs]
        return segments


def _check_segments(origin: Sample, segments: Sequence[Sample]) -> None:
    """Segments of one execution share its group and rollout id; fill in what was left out."""
    if not segments:
        raise SampleError(f"the generate function returned no sample for sample {origin.index}")
    for segment in segments:
        if segment.group_index is None:
            segment.group_index = origin.group_index
        if segment.rollout_id is None:
            segment.rollout_id = origin.rollout_id
        if segment.index is None:
            segment.index = origin.index


def is_unfinished(group: SampleGroup) -> bool:
    """Whether a sample of it was aborted or never started."""
    return any(s.status in (Status.ABORTED, Status.PENDING) for s in group.samples)
