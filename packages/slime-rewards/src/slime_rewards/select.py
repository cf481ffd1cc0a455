"""Which reward scores which sample."""

import dataclasses
import inspect
import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from slime_core.errors import ConfigError
from slime_core.hooks.adapters import custom_reward
from slime_core.hooks.contracts import RewardFunction
from slime_core.plugins.forms import is_plain
from slime_core.plugins.functions import load_hook
from slime_core.scores import is_answer
from slime_core.types import Sample

from slime_rewards import graders, math
from slime_rewards.boxed import last_boxed
from slime_rewards.calls import Calls
from slime_rewards.classifier import LocalClassifier, ServedClassifier
from slime_rewards.config import BOXED, RewardConfig, unknown_type
from slime_rewards.judge import Judge
from slime_rewards.remote import Server, remote_payload
from slime_rewards.sample_rewards import SampleRewards
from slime_rewards.sandbox import Limits
from slime_rewards.turn_end import without_end
from slime_rewards.verdict import Question, RewardValue, Verdict, label_text, sent_label
from slime_rewards.workers import Workers

logger = logging.getLogger(__name__)

_DEFAULT = "math"
_SETTLED_AT_ONCE = 20_000
"""Characters of a response up to which plain answers are compared without a process."""

Score = Callable[[Sample], Awaitable[RewardValue]]


def make_reward(config: RewardConfig, flat: Mapping[str, Any]) -> SampleRewards:
    """The reward of a run; wrong paths and types are found here, not while generating.

    Raises:
        ConfigError: an unknown --rm-type, or one that lacks an address, a model or a prompt.
        PluginError: --custom-rm-path cannot be loaded or has the wrong shape.
    """
    if config.rm_type is None and config.custom_rm_path is None:
        logger.info("no --rm-type and no --custom-rm-path: responses are scored as %r", _DEFAULT)
    selected = SelectedScores(config, flat)
    if config.rm_type is not None:
        selected.check(config.rm_type)
    return SampleRewards(config, selected)


class SelectedScores:
    """Scores each sample by what it or the run asks for; a ``Scores``; ``close`` it.

    In this order: the path a sample carries, --custom-rm-path, the type in a
    sample's metadata, --rm-type, math. Holds worker processes and loaded functions.
    """

    def __init__(self, config: RewardConfig, flat: Mapping[str, Any]) -> None:
        self._config = config
        self._flat = flat
        self._workers = Workers(
            num_workers=config.reward_num_workers,
            time_limit_s=config.reward_timeout_s,
            limits=Limits(memory_bytes=config.reward_memory_mb << 20),
        )
        self._calls = Calls(config.reward_call_timeout_s)
        self._server = Server(timeout_s=config.reward_call_timeout_s)
        self._judge = Judge(config, self._server)
        self._classifier: Score | None = None
        self._custom: dict[str, RewardFunction] = {}
        self._kinds: dict[str, str] = {}
        self._direct: dict[str, Score] = {
            "random": _random,
            "zero": _zero,
            "remote_rm": self._remote,
            "sequence_classification": self._classified,
            "judge": self._judge,
        }
        if config.custom_rm_path is not None and self._kind(config.custom_rm_path) != "plain":
            self._load(config.custom_rm_path)

    def check(self, rm_type: str) -> None:
        """Raise ``ConfigError`` unless ``rm_type`` can be used; load the model it needs."""
        unboxed = rm_type.removeprefix(BOXED)
        known = {*self._direct, *graders.NAMES}
        if complaint := unknown_type(rm_type, known):
            raise ConfigError(f"--rm-type {rm_type} {complaint}")
        if unboxed == "remote_rm" and self._config.rm_url is None:
            raise ConfigError("--rm-type remote_rm needs the server's address: --rm-url")
        if unboxed == "sequence_classification" and self._classifier is None:
            self._classifier = self._make_classifier()

    def connect(self, router_url: str) -> None:
        """Be ready for a rollout; at ``router_url`` is the judge that has no address of its own."""
        self._judge.router_url = router_url
        if self._uses_workers():
            self._workers.warm_up()

    def _uses_workers(self) -> bool:
        path, rm_type = self._config.custom_rm_path, self._config.rm_type or _DEFAULT
        if path is not None:
            return self._kind(path) == "plain"
        return rm_type.removeprefix(BOXED) in graders.NAMES

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()
        self._calls.close()

    def together(self, samples: Sequence[Sample]) -> RewardFunction | None:
        """Return the function that all of them share and that is given them in one call."""
        path = self._config.custom_rm_path
        if path is None or any(sample.custom_rm_path for sample in samples):
            return None
        kind = self._kind(path)
        in_one_call = kind == "class" or (self._config.group_rm and kind == "function")
        return self._load(path) if in_one_call else None

    def asked(self, sample: Sample) -> str:
        """The function or the --rm-type that scores it."""
        path = sample.custom_rm_path or self._config.custom_rm_path
        if path is not None:
            return path
        return f"--rm-type {sample.metadata.get('rm_type') or self._config.rm_type or _DEFAULT}"

    async def score(self, sample: Sample) -> RewardValue | Verdict:
        """Return the reward of one sample, or what a worker process says of it."""
        path = sample.custom_rm_path or self._config.custom_rm_path
        if path is not None and self._kind(path) == "plain":
            return await self._graded(path, sample)
        if path is not None:
            return (await self._load(path)([sample]))[0]
        rm_type = sample.metadata.get("rm_type") or self._config.rm_type or _DEFAULT
        self.check(rm_type)
        unboxed = rm_type.removeprefix(BOXED)
        if unboxed in self._direct:
            return await self._direct[unboxed](_boxed(sample) if unboxed != rm_type else sample)
        if unboxed == "math" and len(sample.response) <= _SETTLED_AT_ONCE:
            settled = _settled(sample, boxed=unboxed != rm_type)
            if settled is not None:
                return settled
        return await self._graded(rm_type, sample)

    async def _graded(self, grader: str, sample: Sample) -> Verdict:
        """What a worker process says."""
        question = Question(
            grader=grader,
            response=without_end(sample.response),
            label=sent_label(sample.label),
            metadata=_plain(sample.metadata),
        )
        return await self._workers.ask(question)

    def _kind(self, path: str) -> str:
        """``plain`` functions of a response run in worker processes, others beside the loop."""
        if path not in self._kinds:
            function = load_hook("custom_rm_path", path)
            kind = "class" if inspect.isclass(function) else "function"
            self._kinds[path] = "plain" if is_plain(function) else kind
        return self._kinds[path]

    def _load(self, path: str) -> RewardFunction:
        if path not in self._custom:
            group = self._config.group_rm and path == self._config.custom_rm_path
            self._custom[path] = custom_reward(path, self._flat, group=group, run=self._calls.run)
        return self._custom[path]

    def _make_classifier(self) -> Score:
        if self._config.rm_url is not None:
            return ServedClassifier(self._config, self._server)
        if self._config.reward_model_path is None:
            raise ConfigError(
                "--rm-type sequence_classification needs a model: its directory as "
                "--reward-model-path, or the address of SGLang with it as --rm-url"
            )
        return LocalClassifier(self._config.reward_model_path, self._calls)

    async def _classified(self, sample: Sample) -> RewardValue:
        assert self._classifier is not None, "made by check"
        return await self._classifier(sample)

    async def _remote(self, sample: Sample) -> RewardValue:
        assert self._config.rm_url is not None, "checked before"
        return await self._server.ask(self._config.rm_url, remote_payload(sample))


def _boxed(sample: Sample) -> Sample:
    """The sample as one whose response is its last box."""
    return dataclasses.replace(sample, response=last_boxed(sample.response) or "")


def _settled(sample: Sample, *, boxed: bool) -> float | None:
    """A math reward that needs no algebra."""
    if not is_answer(sample.label):
        return None
    response = without_end(sample.response)
    answer = (last_boxed(response) or "") if boxed else response
    return math.settle(answer, label_text(sample.label))


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What of the metadata can be sent to a process: arrays as lists, the rest as text."""
    return json.loads(json.dumps(dict(metadata), default=_sendable, skipkeys=True))


def _sendable(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


async def _zero(_sample: Sample) -> float:
    """Nothing is judged: for distillation, which learns from the teacher alone."""
    return 0.0


async def _random(sample: Sample) -> float:
    """0 or 1, the same for the same sample of the same run."""
    return float(random.Random(f"{sample.index} {sample.response}").getrandbits(1))
