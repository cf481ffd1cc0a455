"""One execution: every request it makes of the model, and the samples that become of it."""

import asyncio
import copy
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from slime_core.data.chat import Message, Tokenizer
from slime_core.data.conversation import TokenLog
from slime_core.data.template_certificate import Template, TemplateDriftError
from slime_core.errors import SampleError, SlimeError
from slime_core.types import Sample, Status

from slime_sglang.agents.hearing import heard, taken_apart
from slime_sglang.agents.history import History, Tools
from slime_sglang.agents.reply import Said, Turn, plain
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.agents.trajectory import tell
from slime_sglang.answers.continued import version_runs
from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.answers.transcript import count_cached, written
from slime_sglang.together import end

Ask = Callable[[Mapping[str, Any], Sample], Awaitable[dict[str, Any] | None]]
"""(body of a /generate request, sample it is for) -> answer; None if the sample says why not."""


class AbortedError(BaseException):
    """The rollout has enough samples: ends an execution, past its ``except Exception``."""


class LateError(TimeoutError):
    """An execution was given a time and took longer; no timeout of its own making."""


class WorkCancelledError(RuntimeError):
    """An execution ended as if it had been cancelled, and nobody had."""


class RequestError(SlimeError, ValueError):
    """A request of an agent that cannot be answered; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Who answers the requests of a session."""

    ask: Ask
    tokenizer: Tokenizer
    sampling: Sampling
    settings: AgentSettings
    seed: Callable[[Sample, int], int]
    """(sample, number of the request) -> seed of its sampling."""


class Session:
    """Answers requests for one sample and keeps every token of them."""

    def __init__(self, sample: Sample, backend: Backend) -> None:
        self.sample = sample
        self.problem: SlimeError | None = None
        """What must stop the run, although an agent was told of it."""
        self.aborted = asyncio.Event()
        """Set when nothing more is wanted of this execution."""
        self.num_requests = 0
        self.prompt = copy.deepcopy(sample.prompt)
        """The prompt as it was given out, whatever user code appends to the sample's."""
        self._given = sample.prompt
        self._backend = backend
        self._history = History(sample, backend.tokenizer, backend.settings)
        self._trajectories = self._history.trajectories
        self._full = False

    async def reply(
        self,
        prompt: str | Sequence[Message],
        tools: Tools = None,
        sampling: Sampling | None = None,
        extra: Mapping[str, Any] | None = None,
        *,
        may_call: bool = True,
    ) -> Turn:
        """Let the model go on from ``prompt``: continue the history it repeats, or begin anew.

        ``extra`` are entries of SGLang's sampling_params that replace the run's. Without
        ``may_call`` what looks like a call of a tool stays text.

        Raises:
            AbortedError: the rollout ends without this sample.
            TemplateDriftError: the chat template rewrites the history.
            RequestError: the engine refused the request.
        """
        if self.aborted.is_set():
            raise AbortedError
        number, self.num_requests = self.num_requests, self.num_requests + 1
        parent, log = self._before(prompt, tools)
        so_far = Sample(tokens=log.tokens, response_length=log.response_length)
        limits = sampling or self._backend.sampling
        params = limits.request(so_far, seed=self._backend.seed(self.sample, number))
        params |= _at_most(params, extra or {})
        if params["max_new_tokens"] <= 0:
            self._full = True
            said = Said("", "length", num_prompt_tokens=len(so_far.tokens))
            return Turn(parent.log if parent else log, said, parent, prompt=prompt)
        body = {"input_ids": so_far.tokens, "sampling_params": params, "return_logprob": True}
        meta = await self._meta(body)
        said = heard(meta, self._backend.tokenizer, num_prompt_tokens=len(so_far.tokens))
        num_calls = self._trajectories.num_calls
        offered = tools if may_call else None
        said = await taken_apart(said, self._backend.settings, offered, num_calls=num_calls)
        place = 0 if isinstance(prompt, str) else len(prompt)
        kept = prompt if isinstance(prompt, str) else tuple(plain(dict(m)) for m in prompt)
        turn = Turn(_with_answer(log, meta), said, parent, place, kept)
        if said.num_tokens:
            self._trajectories.add(turn, tools)
        return turn

    def unheard(self, turn: Turn) -> None:
        """Whoever asked for ``turn`` was gone before it could be told: it is not trained on."""
        self._trajectories.forget(turn)

    def token_texts(self, turn: Turn) -> tuple[str, ...]:
        """What each token of a turn reads by itself."""
        decode = partial(self._backend.tokenizer.decode, skip_special_tokens=False)
        tokens = turn.log.tokens
        return tuple(decode([token]) for token in tokens[len(tokens) - turn.said.num_tokens :])

    async def watch(self, work: Awaitable[Any], timeout_s: float | None = None) -> Any:
        """What ``work`` returns; it is ended when it is late or when nothing more is wanted.

        Work that continues a sample by itself, without this session, is never ended.

        Raises:
            LateError: it took longer than ``timeout_s``.
            AbortedError: the rollout ends without this sample.
            WorkCancelledError: it let the end of something that it had cancelled itself pass.
        """
        task = asyncio.ensure_future(work)
        aborted = asyncio.ensure_future(self.aborted.wait())  # waits: as long as the work
        try:
            waiting, first = [task, aborted], asyncio.FIRST_COMPLETED
            done, _ = await asyncio.wait(waiting, timeout=timeout_s, return_when=first)
            if not done:
                raise LateError(f"took more than {timeout_s} s")
            if task not in done and (self.num_requests or timeout_s is not None):
                raise AbortedError
            await asyncio.wait([task])
            if task.cancelled():  # by itself: who cancels this does not get here
                raise WorkCancelledError("a task that it awaited was cancelled")
            return task.result()  # waits: is done
        finally:
            await end((task, aborted))

    def settle(self, made: Any) -> Any:
        """What an execution returned, completed by what was recorded.

        A returned sample without tokens of its own gets the recorded ones; if the conversation
        branched, its branches are segments that share its ``rollout_id``. A prompt to which user
        code appended is what it was again: the conversation is in ``metadata["messages"]``. Tokens
        whose status was left pending are complete, unless they were given up.

        Raises:
            SampleError: it is no sample, or one without tokens or with a reward that is not finite.
        """
        if self.problem is not None:
            raise self.problem
        made = list(made) if isinstance(made, list | tuple) else made
        for sample in made if isinstance(made, list) else [made]:
            if not isinstance(sample, Sample):
                raise SampleError(f"it returned {type(sample).__name__}, not a sample")
            own = sample.prompt is not self._given
            sample.prompt = plain(sample.prompt) if own else copy.deepcopy(self.prompt)
            sample.response = _text(sample)
            sample.metadata = plain(sample.metadata)
            _check_reward(sample)
        origin = made[0] if isinstance(made, list) and len(made) == 1 else made
        if isinstance(origin, list) or origin.response_length:
            self._end(origin if isinstance(origin, list) else [origin])
            return made
        segments = self.samples(origin)
        self._end(segments)
        return segments[0] if len(segments) == 1 else segments

    def _end(self, samples: Sequence[Sample]) -> None:
        """What stayed pending would be taken for unfinished, and be begun again forever."""
        if self.aborted.is_set():
            return
        for sample in samples:
            if sample.status is Status.PENDING:
                if not sample.response_length:
                    raise SampleError(_without_tokens(self.num_requests))
                sample.status = Status.COMPLETED

    def samples(self, origin: Sample) -> list[Sample]:
        """``origin`` with the tokens recorded, and one more sample per further branch."""
        tokenizer = self._backend.tokenizer
        leaves = self._trajectories.leaves()
        if not leaves:
            if self._full and origin.status is Status.PENDING:
                origin.status = Status.TRUNCATED
            return [origin]
        if origin.rollout_id is None:
            origin.rollout_id = origin.index
        response, status = origin.response, origin.status
        segments = self._trajectories.samples(origin)
        for segment, leaf in zip(segments, leaves, strict=True):
            tell(segment, leaf)
            if self._full and len(leaves) == 1:
                segment.status = Status.TRUNCATED
            if status in (Status.FAILED, Status.ABORTED):
                segment.status = status
            if len(leaves) > 1 or not response:
                segment.response = leaf.log.text(tokenizer)
        return segments

    @property
    def last(self) -> Turn | None:
        """The newest turn that nothing followed."""
        leaves = self._trajectories.leaves()
        return leaves[-1] if leaves else None

    def template(self, tools: Tools) -> Template:
        """How this session's conversations are rendered."""
        return self._history.template(tools)

    def _before(
        self, prompt: str | Sequence[Message], tools: Tools
    ) -> tuple[Turn | None, TokenLog]:
        """``History.before``; a template that rewrites history stops the run."""
        try:
            return self._history.before(prompt, tools)
        except TemplateDriftError as error:
            self.problem = error
            raise

    async def _meta(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        asked = Sample(index=self.sample.index, session_id=self.sample.session_id)
        answer = await self._backend.ask(body, asked)
        if answer is None and asked.status is not Status.ABORTED:
            raise RequestError(str(asked.metadata.get("error")))
        meta: Mapping[str, Any] = {} if answer is None else answer["meta_info"]
        if answer is None or (meta.get("finish_reason") or {}).get("type") == "abort":
            self.aborted.set()
            raise AbortedError
        count_cached(self.sample, meta)
        return meta


def _check_reward(sample: Sample) -> None:
    """Let a reward of NaN cost its sample, as one from a reward function does, and not the run."""
    given: Any = sample.reward
    if isinstance(given, float) and not math.isfinite(given):
        sample.reward = None
        raise SampleError(f"it set `sample.reward` to {given}: rewards are finite")


def _without_tokens(num_requests: int) -> str:
    if num_requests:
        return (
            f"it returned a sample without tokens: each of its {num_requests} requests was "
            "refused, or given up before the answer came (what time-outs do its clients have?)"
        )
    return (
        "it returned a sample without tokens: call generate_single, or set tokens, "
        "response_length and status"
    )


def _text(sample: Sample) -> str:
    """The response of a sample that user code returned.

    Raises:
        SampleError: it is no text.
    """
    given: Any = sample.response
    if isinstance(given, str):
        return plain(given)
    sample.response = ""  # the sample is kept, as one that failed
    advice = ""
    if isinstance(given, Sample):
        advice = (
            ": generate_single(args, sample) returns the sample, its response written; "
            "generate_single(conversation) returns text"
        )
    raise SampleError(f"it set `sample.response` to a {type(given).__name__}, not a str{advice}")


def _with_answer(log: TokenLog, meta: Mapping[str, Any]) -> TokenLog:
    """``log`` and the tokens of an answer, each under the version of the weights that wrote it."""
    tokens, log_probs = written(meta)
    begin = 0
    for count, version in version_runs(meta):
        end = begin + count
        log = log.add_model(tokens[begin:end], log_probs[begin:end], version)
        begin = end
    return log


def _at_most(params: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in extra.items() if value is not None}
    if "max_new_tokens" in changed:
        changed["max_new_tokens"] = min(params["max_new_tokens"], changed["max_new_tokens"])
    return changed
