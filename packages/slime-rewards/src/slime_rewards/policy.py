"""What becomes of responses that cannot be graded: counted, dropped, scored, or too many."""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Sequence

import httpx
from slime_core.errors import SlimeError
from slime_core.scores import REWARD_OUTCOME
from slime_core.types import Sample, Status

from slime_rewards.config import RewardConfig
from slime_rewards.verdict import Outcome, RewardValue, Verdict

logger = logging.getLogger(__name__)

_ERROR = "error"
_LATE = (TimeoutError, httpx.TimeoutException)


class GradingError(SlimeError, RuntimeError):
    """Too many responses could not be graded; the message has the first traceback."""


class Books:
    """Counts of one rollout."""

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._seen: set[str] = set()
        self.clear()

    def clear(self) -> None:
        """Begin with another rollout."""
        self._counts = dict.fromkeys(Outcome, 0)
        self._num_retries = 0
        self._seconds = 0.0
        self._slowest = 0.0
        self._first: str | None = None

    def count(self, verdict: Verdict) -> None:
        """Note how one response ended."""
        self._counts[verdict.outcome] += 1
        self._seconds += verdict.seconds
        self._slowest = max(self._slowest, verdict.seconds)
        if verdict.outcome is not Outcome.VALUE:
            self._first = self._first or verdict.error
            self._warn(verdict)

    def count_retry(self) -> None:
        """Note that a response is graded again."""
        self._num_retries += 1

    def _warn(self, verdict: Verdict) -> None:
        """Log a problem, once in a run."""
        short = summary(verdict)
        if short not in self._seen:
            self._seen.add(short)
            logger.warning("a response could not be graded: %s", verdict.error)

    def check(self) -> None:
        """Stop the run where too much went wrong.

        Raises:
            GradingError: more failures than allowed.
        """
        failures = self._counts[Outcome.ERROR]
        if not self._counts[Outcome.VALUE]:
            failures += self._counts[Outcome.ABSTENTION]
        if failures > self._max_failures:
            raise GradingError(
                f"{failures} responses of this rollout could not be graded, more than "
                f"--reward-max-failures {self._max_failures}; the first problem:\n{self._first}"
            )

    def metrics(self, prefix: str) -> dict[str, float]:
        """Numbers by outcome, and seconds for one response."""
        total = sum(self._counts.values())
        if not total:
            return {}
        return {
            f"{prefix}reward_values": float(self._counts[Outcome.VALUE]),
            f"{prefix}reward_abstentions": float(self._counts[Outcome.ABSTENTION]),
            f"{prefix}reward_errors": float(self._counts[Outcome.ERROR]),
            f"{prefix}reward_retries": float(self._num_retries),
            f"{prefix}reward_s": self._seconds / total,
            f"{prefix}reward_s_max": self._slowest,
        }


async def attempted(
    grade: Callable[[], Awaitable[Sequence[Verdict]]], config: RewardConfig, books: Books
) -> Sequence[Verdict]:
    """Verdicts on some samples, asked for again where the policy is to retry."""
    verdicts = await grade()
    if config.reward_failure_policy != "retry":
        return verdicts
    for _ in range(config.reward_num_retries):
        if all(verdict.outcome is Outcome.VALUE for verdict in verdicts):
            break
        books.count_retry()
        verdicts = await grade()
    return verdicts


def settle(
    samples: Sequence[Sample],
    verdicts: Sequence[Verdict],
    config: RewardConfig,
    *,
    group: Sequence[Sample],
) -> None:
    """Write rewards on samples of a group, or what the policy makes of their absence."""
    for sample, verdict in zip(samples, verdicts, strict=True):
        if verdict.outcome is Outcome.VALUE:
            sample.reward = verdict.reward
        else:
            sample.metadata[REWARD_OUTCOME] = verdict.outcome.value
            sample.metadata[_ERROR] = summary(verdict)
            sample.reward = _instead(config)
            if sample.reward is None:
                sample.status = Status.FAILED
    lost = [s for s, v in zip(samples, verdicts, strict=True) if v.outcome is not Outcome.VALUE]
    if lost and config.reward_failure_policy == "drop-group":
        _drop(group, str(lost[0].metadata[_ERROR]))


def summary(verdict: Verdict) -> str:
    """A problem in one line: the last of a traceback."""
    return (verdict.error or "").strip().rpartition("\n")[2]


def _instead(config: RewardConfig) -> RewardValue | None:
    if config.reward_failure_policy != "score":
        return None
    score = config.reward_failure_score
    keys = {key for key in (config.reward_key, config.eval_reward_key) if key is not None}
    return dict.fromkeys(keys, score) if keys else score


def _drop(samples: Sequence[Sample], error: str) -> None:
    for sample in samples:
        if sample.status is not Status.FAILED:
            sample.reward = None
            sample.status = Status.FAILED
            sample.metadata[REWARD_OUTCOME] = "dropped"
            sample.metadata[_ERROR] = f"another response of its group could not be graded: {error}"


def failure(error: Exception, seconds: float) -> Verdict:
    """The verdict that an exception is."""
    if isinstance(error, asyncio.CancelledError):
        raise error
    late = isinstance(error, _LATE)
    text = f"{type(error).__name__}: {error}"
    if not late:
        text = "".join(traceback.format_exception(error)) if error.__traceback__ else text
    outcome = Outcome.ABSTENTION if late else Outcome.ERROR
    return Verdict(outcome=outcome, error=text.strip(), seconds=seconds)
