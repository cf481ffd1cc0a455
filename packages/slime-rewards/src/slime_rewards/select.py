"""Which reward scores which sample."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from slime_core.errors import ConfigError
from slime_core.hooks import RewardFunction, RewardValue, custom_reward
from slime_core.types import Sample, Status

from slime_rewards import dapo, deepscaler, f1
from slime_rewards.boxed import last_boxed
from slime_rewards.config import RewardConfig
from slime_rewards.remote import RemoteReward
from slime_rewards.workers import MathWorkers

logger = logging.getLogger(__name__)

Score = Callable[[Sample, str], Awaitable[RewardValue]]
"""(sample, response to look at) -> its reward."""

_BOXED = "boxed_"
_DEFAULT = "math"


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
        self._math = MathWorkers()
        self._custom: dict[str, RewardFunction] = {}
        self._errors: set[str] = set()
        self._builtin: dict[str, Score] = {
            "math": lambda sample, response: self._math.grade(response, _label(sample)),
            "f1": _pure(f1.grade),
            "dapo": _pure(dapo.grade),
            "deepscaler": self._deepscaler,
            "random": _random,
            "zero": _zero,
            "remote_rm": self._remote,
        }
        if config.custom_rm_path is not None:
            self._load(config.custom_rm_path)

    def check(self, rm_type: str) -> None:
        """Raise ``ConfigError`` unless ``rm_type`` can be used."""
        plain = rm_type.removeprefix(_BOXED)
        if plain not in self._builtin:
            raise ConfigError(
                f"--rm-type {rm_type} is unknown; there are {', '.join(sorted(self._builtin))}, "
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
        self._math.close()

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
        if path is not None:
            return (await self._load(path)([sample]))[0]
        rm_type = sample.metadata.get("rm_type") or self._config.rm_type or _DEFAULT
        self.check(rm_type)
        response = sample.response
        if rm_type.startswith(_BOXED):
            response = last_boxed(response) or ""
        return await self._builtin[rm_type.removeprefix(_BOXED)](sample, response)

    def _load(self, path: str) -> RewardFunction:
        if path not in self._custom:
            group = self._config.group_rm and path == self._config.custom_rm_path
            self._custom[path] = custom_reward(path, self._flat, group=group)
        return self._custom[path]

    def _fail(self, samples: Sequence[Sample], error: Exception) -> None:
        message = f"{type(error).__name__}: {error}"
        for sample in samples:
            sample.reward = None
            sample.status = Status.FAILED
            sample.metadata["error"] = message
        if message not in self._errors:
            self._errors.add(message)
            logger.warning("a reward failed, its sample is not trained on: %s", message)

    async def _deepscaler(self, sample: Sample, response: str) -> float:
        answer = deepscaler.final_answer(response)
        return 0.0 if answer is None else await self._math.grade(answer, _label(sample))

    async def _remote(self, sample: Sample, _response: str) -> RewardValue:
        assert self._config.rm_url is not None, "checked before"
        return (await RemoteReward(self._config.rm_url)([sample]))[0]


def _label(sample: Sample) -> str:
    if sample.label is None:
        raise ValueError(
            "the sample has no label to compare with: name the column with --label-key"
        )
    return str(sample.label)


def _pure(grade: Callable[[str, str], RewardValue]) -> Score:
    async def score(sample: Sample, response: str) -> RewardValue:
        return grade(response, _label(sample))

    return score


async def _zero(_sample: Sample, _response: str) -> float:
    """Nothing is judged: for distillation, which learns from the teacher alone."""
    return 0.0


async def _random(sample: Sample, _response: str) -> float:
    """0 or 1, the same for the same sample of the same run."""
    return float(random.Random(f"{sample.index} {sample.response}").getrandbits(1))
