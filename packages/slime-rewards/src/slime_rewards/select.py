"""Which reward scores which sample."""

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from slime_core.errors import ConfigError
from slime_core.hooks import RewardFunction, RewardValue, custom_reward, load_hook
from slime_core.types import Sample, Status

from slime_rewards import graders, math
from slime_rewards.boxed import last_boxed
from slime_rewards.config import RewardConfig
from slime_rewards.remote import RemoteReward
from slime_rewards.verdict import Outcome, Question
from slime_rewards.workers import Workers

logger = logging.getLogger(__name__)

_BOXED = graders.BOXED
_DEFAULT = "math"
_SETTLED_AT_ONCE = 20_000
"""Characters of a response up to which plain answers are compared without a process."""


class GradingError(RuntimeError):
    """A grader failed; its message has the traceback."""


class AbstentionError(RuntimeError):
    """A grader gave no answer in time."""


def make_reward(config: RewardConfig, flat: Mapping[str, Any]) -> "SampleRewards":
    """The reward of a run; wrong paths and types are found here, not while generating.

    Raises:
        ConfigError: an unknown --rm-type, or remote_rm without --rm-url.
        PluginError: --custom-rm-path cannot be loaded or has the wrong shape.
    """
    if config.rm_type is None and config.custom_rm_path is None:
        logger.info("no --rm-type and no --custom-rm-path: responses are scored as %r", _DEFAULT)
    rewards = SampleRewards(config, flat)
    if config.rm_type is not None:
        rewards.check(config.rm_type)
    return rewards


class SampleRewards:
    """The rewards of a run: holds worker processes and loaded functions; ``close`` it.

    In this order: the path a sample carries, --custom-rm-path, the type in a
    sample's metadata, --rm-type, math.

    Samples that already have a reward, or were not finished, are left alone. What goes wrong is
    written on the sample: ``Status.FAILED`` and ``metadata["error"]``.
    """

    def __init__(self, config: RewardConfig, flat: Mapping[str, Any]) -> None:
        self._config = config
        self._flat = flat
        self._workers = Workers()
        self._custom: dict[str, RewardFunction] = {}
        self._isolated: dict[str, bool] = {}
        self._errors: set[str] = set()
        self._builtin: dict[str, Callable[[Sample], Awaitable[RewardValue]]] = {
            "random": _random,
            "zero": _zero,
            "remote_rm": self._remote,
        }
        if config.custom_rm_path is not None and not self._is_isolated(config.custom_rm_path):
            self._load(config.custom_rm_path)

    def check(self, rm_type: str) -> None:
        """Raise ``ConfigError`` unless ``rm_type`` can be used."""
        plain = rm_type.removeprefix(_BOXED)
        known = {*self._builtin, *graders.NAMES}
        if plain not in known:
            raise ConfigError(
                f"--rm-type {rm_type} is unknown; there are {', '.join(sorted(known))}, "
                f"each also as {_BOXED}NAME; for a function of your own give --custom-rm-path"
            )
        if plain == "remote_rm" and self._config.rm_url is None:
            raise ConfigError("--rm-type remote_rm needs the server's address: --rm-url")

    async def __call__(self, samples: Sequence[Sample]) -> None:
        """Set ``reward`` on every sample; never raises."""
        skipped = (Status.ABORTED, Status.FAILED)
        waiting = [s for s in samples if s.reward is None and s.status not in skipped]
        if self._config.group_rm:
            await self._score_group(waiting)
        else:
            await asyncio.gather(*(self._score(sample) for sample in waiting))

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    async def _score(self, sample: Sample) -> None:
        try:
            sample.reward = await self._reward(sample)
        except Exception as error:
            self._fail([sample], error)

    async def _score_group(self, samples: Sequence[Sample]) -> None:
        """One call for all samples, where they share a custom function."""
        path = self._config.custom_rm_path
        if path is None or not samples or any(sample.custom_rm_path for sample in samples):
            await asyncio.gather(*(self._score(sample) for sample in samples))
            return
        try:
            rewards = await self._load(path)(samples)
            for sample, reward in zip(samples, rewards, strict=True):
                sample.reward = reward
        except Exception as error:
            self._fail(samples, error)

    async def _reward(self, sample: Sample) -> RewardValue:
        path = sample.custom_rm_path or self._config.custom_rm_path
        if path is not None and self._is_isolated(path):
            return await self._graded(path, sample)
        if path is not None:
            return (await self._load(path)([sample]))[0]
        rm_type = sample.metadata.get("rm_type") or self._config.rm_type or _DEFAULT
        self.check(rm_type)
        plain = rm_type.removeprefix(_BOXED)
        if plain in self._builtin:
            return await self._builtin[plain](sample)
        if plain == "math" and len(sample.response) <= _SETTLED_AT_ONCE:
            settled = _settled(sample, boxed=plain != rm_type)
            if settled is not None:
                return settled
        return await self._graded(rm_type, sample)

    async def _graded(self, grader: str, sample: Sample) -> RewardValue:
        """The reward a worker process gives."""
        verdict = await self._workers.ask(
            Question(
                grader=grader,
                response=sample.response,
                label=None if sample.label is None else _text(sample.label),
                metadata=_plain(sample.metadata),
            )
        )
        if verdict.outcome is Outcome.VALUE:
            assert verdict.reward is not None, "values have a reward"
            return verdict.reward
        failure = AbstentionError if verdict.outcome is Outcome.ABSTENTION else GradingError
        raise failure(verdict.error)

    def _is_isolated(self, path: str) -> bool:
        """Whether it is a plain function of a response: those run in worker processes."""
        if path not in self._isolated:
            function = load_hook("custom_rm_path", path)
            self._isolated[path] = graders.is_plain(function)
        return self._isolated[path]

    def _load(self, path: str) -> RewardFunction:
        if path not in self._custom:
            group = self._config.group_rm and path == self._config.custom_rm_path
            self._custom[path] = custom_reward(path, self._flat, group=group)
        return self._custom[path]

    def _fail(self, samples: Sequence[Sample], error: Exception) -> None:
        message = f"{type(error).__name__}: {error}"
        outcome = Outcome.ABSTENTION if isinstance(error, AbstentionError) else Outcome.ERROR
        for sample in samples:
            sample.reward = None
            sample.status = Status.FAILED
            sample.metadata["error"] = message
            sample.metadata["reward_outcome"] = outcome.value
        if message not in self._errors:
            self._errors.add(message)
            logger.warning("a reward failed, its sample is not trained on: %s", message)

    async def _remote(self, sample: Sample) -> RewardValue:
        assert self._config.rm_url is not None, "checked before"
        return (await RemoteReward(self._config.rm_url)([sample]))[0]


def _settled(sample: Sample, *, boxed: bool) -> float | None:
    """A math reward that needs no algebra."""
    if sample.label is None:
        return None
    response = (last_boxed(sample.response) or "") if boxed else sample.response
    return math.settle(response, str(sample.label))


def _text(label: object) -> str:
    """A label as graders get it: text as it is, lists and dictionaries as JSON."""
    return json.dumps(label) if isinstance(label, list | dict) else str(label)


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What of the metadata can be sent to a process; the rest as text."""
    return json.loads(json.dumps(dict(metadata), default=str))


async def _zero(_sample: Sample) -> float:
    """Nothing is judged: for distillation, which learns from the teacher alone."""
    return 0.0


async def _random(sample: Sample) -> float:
    """0 or 1, the same for the same sample of the same run."""
    return float(random.Random(f"{sample.index} {sample.response}").getrandbits(1))
