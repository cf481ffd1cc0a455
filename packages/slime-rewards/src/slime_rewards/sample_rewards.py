"""The rewards of a run: samples are scored, counted, and those that cannot be scored dealt with."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from slime_core.hooks.contracts import RewardFunction
from slime_core.types import Sample, Status

from slime_rewards.config import RewardConfig
from slime_rewards.policy import Books, attempted, failure, settle
from slime_rewards.verdict import Outcome, RewardValue, Verdict, checked

_UNFINISHED = (Status.ABORTED, Status.FAILED)


class Scores(Protocol):
    """Whatever scores samples; see ``slime_rewards.select``."""

    def connect(self, router_url: str) -> None:
        """Be ready for a rollout whose engines are behind ``router_url``."""
        ...

    def together(self, samples: Sequence[Sample]) -> RewardFunction | None:
        """Return the function that scores all of them in one call; None: one by one."""
        ...

    def asked(self, sample: Sample) -> str:
        """Return what scores it, for a message."""
        ...

    async def score(self, sample: Sample) -> RewardValue | Verdict:
        """Score one sample; may raise anything."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class SampleRewards:
    """Sets the rewards of samples; ``close`` it.

    Samples that already have a reward, or were not finished, are left alone. What becomes of
    those that cannot be graded is --reward-failure-policy's to say.
    """

    def __init__(self, config: RewardConfig, scores: Scores) -> None:
        self._config = config
        self._scores = scores
        self._keys = [key for key in (config.reward_key, config.eval_reward_key) if key]
        self._books = Books(config.reward_max_failures)

    def connect(self, router_url: str) -> None:
        """Be ready for a rollout; at ``router_url`` is the judge that has no address of its own."""
        self._scores.connect(router_url)

    async def __call__(self, samples: Sequence[Sample]) -> None:
        """Set ``reward`` on every sample.

        Raises:
            GradingError: more failures than --reward-max-failures.
        """
        waiting = [s for s in samples if s.reward is None and s.status not in _UNFINISHED]
        if not waiting:
            return
        function = self._scores.together(waiting)
        if function is not None:
            verdicts = await self._try(lambda: self._group_verdicts(function, waiting))
        else:
            found = await asyncio.gather(
                *(self._try(lambda sample=sample: self._verdict(sample)) for sample in waiting)
            )
            verdicts = [verdict for (verdict,) in found]
        for verdict in verdicts:
            self._books.count(verdict)
        settle(waiting, verdicts, self._config, group=samples)
        self._books.check()

    def metrics(self, prefix: str = "rollout/") -> dict[str, float]:
        """Numbers by outcome since the last call, which starts the books anew."""
        found = self._books.metrics(prefix)
        self._books.clear()
        return found

    def close(self) -> None:
        """End the worker processes."""
        self._scores.close()

    async def _try(self, grade: Callable[[], Awaitable[Sequence[Verdict]]]) -> Sequence[Verdict]:
        return await attempted(grade, self._config, self._books)

    async def _group_verdicts(
        self, function: RewardFunction, samples: Sequence[Sample]
    ) -> Sequence[Verdict]:
        start = time.monotonic()
        try:
            rewards = await function(samples)
            seconds = time.monotonic() - start
            return [self._valued(reward, seconds) for reward in rewards]
        except Exception as error:
            failed = failure(error, time.monotonic() - start)
            return [self._named(failed, sample) for sample in samples]

    async def _verdict(self, sample: Sample) -> Sequence[Verdict]:
        """One, in a list; the boundary to everything that may fail."""
        start = time.monotonic()
        try:
            found = await self._scores.score(sample)
            if not isinstance(found, Verdict):
                return [self._valued(found, time.monotonic() - start)]
            if found.outcome is Outcome.VALUE:
                return [self._valued(found.reward, found.seconds)]
        except Exception as error:
            return [self._named(failure(error, time.monotonic() - start), sample)]
        return [self._named(found, sample)]

    def _named(self, verdict: Verdict, sample: Sample) -> Verdict:
        """Why there is no reward, with a line before it that says whose and of what."""
        head = (
            f"{self._scores.asked(sample)}, sample {sample.index}, label {sample.label!r:.40}, "
            f"response {sample.response!r:.80}:"
        )
        return dataclasses.replace(verdict, error=f"{head}\n{verdict.error}")

    def _valued(self, reward: object, seconds: float) -> Verdict:
        """A value, once it is known that one can train on it."""
        usable = checked(reward, self._keys)
        return Verdict(outcome=Outcome.VALUE, reward=usable, seconds=seconds)
