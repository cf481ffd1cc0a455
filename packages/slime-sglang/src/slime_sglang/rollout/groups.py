"""Finish one group: generate its samples at once, run the hooks, score them."""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from slime_core.data.buffer import restarted
from slime_core.errors import SampleError
from slime_core.hooks.contracts import SampleHook
from slime_core.interfaces import Generate, Reward
from slime_core.scores import is_broken, reward_value
from slime_core.types import Sample, SampleGroup, Status

from slime_sglang.answers.transcript import complete_versions
from slime_sglang.rollout.teacher import Teach
from slime_sglang.together import both, together

UNFINISHED = (Status.ABORTED, Status.PENDING)
"""What a sample is that is still to be written, or to be gone on with."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """How the answer is found that a group is compared with (ReMax, arXiv:2310.10505)."""

    generate: Generate
    """Draws the likeliest token at every step."""
    reward_key: str | None = None
    """Entry of a dictionary reward to compare."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of the greedy answer; neither of both if it was aborted."""

    reward: float | None = None
    problem: str | None = None


class GroupWorker:
    """Generation, hooks, reward, greedy baseline and teacher of whole groups."""

    def __init__(
        self,
        generate: Generate,
        reward: Reward,
        *,
        hooks: Sequence[SampleHook] = (),
        greedy: Greedy | None = None,
        teach: Teach | None = None,
    ) -> None:
        self._generate = generate
        self._reward = reward
        self._hooks = tuple(hooks)
        self._greedy = greedy
        self._teach = teach or _no_teacher

    async def finish(
        self, group: SampleGroup, *, iteration: int | None, evaluation: bool = False
    ) -> SampleGroup:
        """The group with every sample generated and scored; unscored if any was aborted.

        A sample that an earlier iteration finished is left as it is.
        """
        pending = None
        if self._greedy is not None and group.baseline is None:
            pending = copy.deepcopy(restarted(group).samples[0])
        answers = (self._one(s, self._generate, iteration, evaluation) for s in group.samples)
        greedy, parts = await both(self._answer_greedily(pending, iteration), together(*answers))
        samples = tuple(sample for part in parts for sample in part)
        baseline = group.baseline if greedy.reward is None else greedy.reward
        if greedy.problem is not None and not any(s.status in UNFINISHED for s in samples):
            _fail(samples, f"the greedy answer to compare with failed: {greedy.problem}")
        finished = SampleGroup(group.group_index, samples, baseline)
        if self.is_unfinished(finished):
            return finished
        await both(self._score(samples), self._teach(samples))
        return finished

    def is_unfinished(self, group: SampleGroup) -> bool:
        """Whether a sample of it was aborted or never started, or the greedy answer was."""
        if any(sample.status in UNFINISHED for sample in group.samples):
            return True
        compared = self._greedy is not None and not all(map(is_broken, group.samples))
        return compared and group.baseline is None

    async def _answer_greedily(self, sample: Sample | None, iteration: int | None) -> "_Answer":
        """The mean reward of its segments; nothing if it was aborted or none is asked for."""
        if self._greedy is None or sample is None:
            return _Answer()
        segments = await self._one(sample, self._greedy.generate, iteration, evaluation=False)
        if any(segment.status in UNFINISHED for segment in segments):
            return _Answer()
        await self._score(segments)
        found = [reward_value(s, self._greedy.reward_key) for s in segments if not is_broken(s)]
        rewards = [reward for reward in found if reward is not None]
        if rewards:
            return _Answer(reward=statistics.fmean(rewards))
        return _Answer(problem=str(segments[0].metadata.get("error", segments[0].status)))

    async def _score(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            complete_versions(sample)
            sample.validate()
        if any(sample.reward is None for sample in samples):
            await self._reward(samples)

    async def _one(
        self, sample: Sample, generate: Generate, iteration: int | None, evaluation: bool
    ) -> list[Sample]:
        if sample.status not in UNFINISHED:
            return [sample]
        made = await generate(sample)
        segments = made if isinstance(made, list) else [made]
        _check_segments(sample, segments)
        return [await self._hooked(segment, iteration, evaluation) for segment in segments]

    async def _hooked(self, segment: Sample, iteration: int | None, evaluation: bool) -> Sample:
        """What the hooks make of it; they see one that is gone on with later when it is whole."""
        for hook in self._hooks:
            if segment.status in UNFINISHED:
                break
            replaced = await hook(segment, rollout_id=iteration, evaluation=evaluation)
            segment = segment if replaced is None else replaced
        return segment


def _fail(samples: Sequence[Sample], error: str) -> None:
    for sample in samples:
        if not is_broken(sample):
            sample.status = Status.FAILED
            sample.metadata["error"] = error


async def _no_teacher(samples: Sequence[Sample]) -> None:
    """Nobody judges the samples token by token."""


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
