"""Turn pending samples into finished ones: one request per sample, through the router."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, overload
from uuid import uuid4

import aiohttp
from slime_core.config.sync import UpdateMode
from slime_core.data.chat import Message, Tokenizer
from slime_core.data.template_certificate import TemplateDriftError
from slime_core.errors import ConfigError, EngineError
from slime_core.hooks import GenerateFunction, custom_generate
from slime_core.mistakes import where
from slime_core.scores import WHERE
from slime_core.types import Sample, Status

from slime_sglang.agents.endpoints import Endpoints
from slime_sglang.agents.reply import Reply
from slime_sglang.agents.session import AbortedError, Backend, Session
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.continued import is_cut_off, joined, rest_of, token_ids, with_versions
from slime_sglang.sampling_params import Sampling, sample_seed
from slime_sglang.transcript import append, mask_earlier, prepare

logger = logging.getLogger(__name__)

_ROUTING_HEADER = "X-SMG-Routing-Key"
_ATTEMPTS = 3
_RETRY_S = 0.5
_ABORT_S = 10.0
_ABORTED_UNREAD = 499
"""What an engine says of a request that a publish aborted before it was scheduled."""

_active: ContextVar["Execution | None"] = ContextVar("_active", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """Whom to ask and how; everything that stays the same for a whole run."""

    router_url: str
    engine_urls: Sequence[str]
    sampling: Sampling
    concurrency: int
    """Requests in flight over all engines."""
    seed: int = 0
    timeout_s: float = 14400.0
    mask_earlier_weights: bool = False
    """Do not train on what earlier weights wrote of a continued sample."""
    custom_generate: str | None = None
    """User function that completes one sample."""
    custom_timeout_s: float | None = None
    """For one call of such a function; None is twice an agent's, which is late before it."""
    flat: Mapping[str, Any] | None = None
    """Configuration as user functions see it."""
    weight_update_mode: UpdateMode = "abort"
    """What a publish does to requests that run."""
    agents: AgentSettings = field(default_factory=AgentSettings)
    """How conversations go on."""


class Recovering(Protocol):
    """Engines of which some may be away for a while."""

    @property
    def urls(self) -> Sequence[str]:
        """Those that are up."""
        ...

    def may_recover(self, since: float) -> bool:
        """Whether what has failed since ``since`` (monotonic) may be a loss that is repaired."""
        ...


@dataclass(frozen=True, slots=True)
class _Purpose:
    """What samples are drawn for, and how."""

    sampling: Sampling
    evaluation: bool
    label: str
    """The iteration, or the evaluation set: part of every request's seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Execution:
    """One call of a user function."""

    generation: "Generation"
    purpose: _Purpose
    session: Session


class Generation:
    """Satisfies ``Generate``; an async context manager that lives in one event loop.

    Samples of a run draw the same tokens whenever seed, iteration and index are the same, on
    engines that honour ``sampling_seed``: those on a CPU, and on GPUs with
    --sglang-enable-deterministic-inference.
    """

    def __init__(
        self,
        spec: GenerationSpec,
        tokenizer: Tokenizer,
        check_alive: Callable[[], None],
        fleet: Recovering | None = None,
    ) -> None:
        """``fleet``: engines that are started again when they are lost; requests wait for them."""
        self.spec = spec
        self.check_alive = check_alive
        self._fleet = fleet
        self._tokenizer = tokenizer
        self._purpose = _Purpose(spec.sampling, False, "0")
        self.version: int | None = None
        """The weights that all engines are known to have at least."""
        self._limit = asyncio.Semaphore(spec.concurrency)
        self._aborting = False
        self._custom: dict[str, GenerateFunction] = {}
        self._sessions: set[Session] = set()
        self._endpoints: Endpoints | None = None
        self._starting = asyncio.Lock()
        self._http: aiohttp.ClientSession | None = None
        if spec.custom_generate is not None:
            self._load(spec.custom_generate)

    async def __aenter__(self) -> "Generation":
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self.spec.timeout_s, sock_connect=30.0),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._endpoints is not None:
            await self._endpoints.stop()
            self._endpoints = None
        if self._http is not None:
            await self._http.close()
            self._http = None

    def begin(self, iteration: int) -> None:
        """Generate for training from now on."""
        self._purpose = _Purpose(self.spec.sampling, False, str(iteration))
        self._aborting = False

    def begin_evaluation(self, label: str, sampling: Sampling) -> None:
        """Generate for an evaluation from now on; ``label`` says which."""
        self._purpose = _Purpose(sampling, True, f"eval/{label}")
        self._aborting = False

    async def __call__(self, sample: Sample) -> Sample | list[Sample]:
        """Complete one sample; a user function that fails makes it ``Status.FAILED``."""
        return await self._generate(sample, self._purpose)

    async def greedy(self, sample: Sample) -> Sample | list[Sample]:
        """The same with the likeliest token at every step."""
        greedy = replace(self._purpose.sampling, temperature=0.0)
        return await self._generate(sample, replace(self._purpose, sampling=greedy))

    async def _generate(self, sample: Sample, purpose: _Purpose) -> Sample | list[Sample]:
        async with self._limit:
            if self._aborting:
                sample.status = Status.ABORTED
                return sample
            if sample.session_id is None:
                sample.session_id = uuid4().hex
            path = sample.generate_function_path or self.spec.custom_generate
            if path is None:
                return await self.request(sample, purpose)
            session = Session(sample, self._backend(purpose))
            token = _active.set(Execution(self, purpose, session))
            self._sessions.add(session)
            try:
                return await self._complete(path, sample, purpose, session)
            finally:
                self._sessions.discard(session)
                _active.reset(token)

    async def _complete(
        self, path: str, sample: Sample, purpose: _Purpose, session: Session
    ) -> Sample | list[Sample]:
        """Let a user function complete a sample; one that is aborted is as it was before."""
        params = purpose.sampling.request(sample, seed=self._seed(sample, purpose))
        try:
            work = self._load(path)(sample, params, evaluation=purpose.evaluation)
            return session.settle(await self._in_time(session.watch(work)))
        except AbortedError:
            sample.prompt, sample.status = session.prompt, Status.ABORTED
            return sample
        except (EngineError, TemplateDriftError, ConfigError, asyncio.CancelledError):
            raise
        except Exception as error:  # the boundary to user code
            if session.problem is not None:
                raise session.problem from error
            logger.exception("%s failed for sample %s", path, sample.index)
            sample.prompt, sample.status = session.prompt, Status.FAILED
            sample.metadata["error"] = f"{path}: {type(error).__name__}: {error}"
            sample.metadata[WHERE] = where(error)
            return sample

    async def _in_time(self, work: Awaitable[Any]) -> Any:
        limit = self.spec.custom_timeout_s or 2 * self.spec.agents.timeout_s
        clock = asyncio.timeout(limit)
        try:
            async with clock:
                return await work
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise TimeoutError(
                f"not done after {limit:g} s (--custom-generate-timeout-s)"
            ) from error

    def _load(self, path: str) -> GenerateFunction:
        if path not in self._custom:
            given = {"generate_single": generate_single}
            self._custom[path] = custom_generate(path, self.spec.flat or {}, given=given)
        return self._custom[path]

    def _backend(self, purpose: _Purpose) -> Backend:
        return Backend(
            ask=self._ask,
            tokenizer=self._tokenizer,
            sampling=purpose.sampling,
            settings=self.spec.agents,
            seed=lambda sample, number: self._seed(sample, purpose, number),
        )

    async def endpoints(self) -> Endpoints:
        """The OpenAI and Anthropic endpoints, started when first asked for."""
        async with self._starting:
            if self._endpoints is None:
                endpoints = Endpoints(self.spec.agents)
                await endpoints.start()
                self._endpoints = endpoints
        return self._endpoints

    async def request(self, sample: Sample, purpose: _Purpose) -> Sample:
        """Continue ``sample`` by one request to an engine."""
        prepare(sample, self._tokenizer)
        if self.spec.mask_earlier_weights and sample.response_length:
            mask_earlier(sample)
        params = purpose.sampling.request(sample, seed=self._seed(sample, purpose))
        if params["max_new_tokens"] <= 0:
            sample.status = Status.TRUNCATED
            return sample
        body = {"input_ids": sample.tokens, "sampling_params": params, "return_logprob": True}
        answer = await self._ask(body, sample)
        if answer is not None:
            append(sample, answer)
        return sample

    async def _ask(self, body: Mapping[str, Any], sample: Sample) -> dict[str, Any] | None:
        """The whole answer, also when publishes interrupt it; None as for ``_post``."""
        parts: list[dict[str, Any]] = []
        rest: Mapping[str, Any] | None = body
        skip: bool = body["sampling_params"].get("skip_special_tokens", False)
        since = time.monotonic()
        while rest is not None:
            asked_at = None if self.spec.weight_update_mode == "abort" else self.version
            answer = await self._post(rest, sample)
            if answer is None:
                return None
            parts.append(with_versions(answer, asked_at))
            if not is_cut_off(answer) or self._aborting:
                break
            if token_ids(answer):
                since = time.monotonic()
            elif time.monotonic() - since > self.spec.timeout_s:
                raise EngineError(
                    f"{self.spec.router_url}/generate aborted sample {sample.index} again and "
                    f"again for {self.spec.timeout_s:g} s without a token"
                )
            await asyncio.sleep(_RETRY_S / 10)  # the engine is paused; it queues what comes
            if self._aborting:
                break
            rest = rest_of(rest, answer)
        return joined(parts, self._tokenizer, skip_special_tokens=skip)

    def _seed(self, sample: Sample, purpose: _Purpose, number: int = 0) -> int:
        parts = (sample.index, number) if number else (sample.index,)
        return sample_seed(self.spec.seed, purpose.label, *parts)

    async def _post(self, body: Mapping[str, Any], sample: Sample) -> dict[str, Any] | None:
        """The engine's answer; None when it refused this sample, which is then ``FAILED``."""
        headers = {_ROUTING_HEADER: sample.session_id or ""}
        problem, began, failures = "", time.monotonic(), 0
        while failures < _ATTEMPTS and time.monotonic() - began < self.spec.timeout_s:
            if problem:
                await asyncio.sleep(_RETRY_S * max(1, failures))
                self.check_alive()
            if self._aborting:
                sample.status = Status.ABORTED
                return None
            try:
                status, answer = await self._once(body, headers)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                status, answer = 0, {"text": f"{type(error).__name__}: {error}"}
            if status == 200:
                return answer
            problem = f"{status or 'no answer'}: {json.dumps(answer)[:1000]}"
            if self._aborting:
                sample.status = Status.ABORTED
                return None
            if status == _ABORTED_UNREAD:
                continue
            if 400 <= status < 500:
                sample.status = Status.FAILED
                sample.metadata["error"] = f"the engine refused the request: {problem}"
                return None
            if self._fleet is None or not self._fleet.may_recover(began):
                failures += 1
        self.check_alive()
        raise EngineError(
            f"{self.spec.router_url}/generate failed {_ATTEMPTS} times, lastly with {problem}"
        )

    async def _once(
        self, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]]:
        assert self._http is not None, "Generation is used inside `async with`"
        url = f"{self.spec.router_url}/generate"
        async with self._http.post(url, json=body, headers=headers) as reply:
            text = await reply.text()
            if reply.status == 200:
                return 200, json.loads(text)
            return reply.status, {"text": text}

    async def abort(self) -> None:
        """Abort what runs and let nothing new start until the next ``begin``."""
        self._aborting = True
        for session in self._sessions:
            session.aborted.set()
        urls = self.spec.engine_urls if self._fleet is None else self._fleet.urls
        await asyncio.gather(*(self._abort_engine(url) for url in urls))

    async def _abort_engine(self, url: str) -> None:
        assert self._http is not None, "Generation is used inside `async with`"
        timeout = aiohttp.ClientTimeout(total=_ABORT_S)
        try:
            async with self._http.post(
                f"{url}/abort_request", json={"rid": "", "abort_all": True}, timeout=timeout
            ) as reply:
                await reply.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.check_alive()
            if self._fleet is not None:
                return  # lost, or soon found to be; what it was asked ends with it
            raise EngineError(f"{url} did not abort its requests: {error}") from error


@overload
async def generate_single(
    conversation: Sequence[Message] | str,
    sampling_params: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[Any] | None = None,
) -> Reply: ...
@overload
async def generate_single(
    args: Any, sample: Sample, sampling_params: Mapping[str, Any] | None = None
) -> Sample: ...
async def generate_single(*given: Any, **named: Any) -> Any:
    """What a custom generate function calls to have the model say something.

    ``await generate_single(conversation)`` returns the model's next turn as text. What the
    conversation repeats of earlier turns keeps the tokens it was made of, and the returned sample
    gets them all. ``await generate_single(args, sample)`` continues the tokens of ``sample``.

    ``sampling_params`` may change temperature, top_p, top_k, max_new_tokens, stop and
    stop_token_ids of this request. Works only while slime is generating.
    """
    execution = active()
    if "sample" in named or any(isinstance(value, Sample) for value in given[:2]):
        return await _continued(execution, *given, **named)
    return await _next_turn(execution, *given, **named)


async def _continued(
    execution: Execution,
    args: Any,
    sample: Sample,
    sampling_params: Mapping[str, Any] | None = None,
) -> Sample:
    sampling = _changed(execution.purpose.sampling, sample.response_length, sampling_params or {})
    return await execution.generation.request(sample, replace(execution.purpose, sampling=sampling))


async def _next_turn(
    execution: Execution,
    conversation: Sequence[Message] | str,
    sampling_params: Mapping[str, Any] | None = None,
    *,
    tools: Sequence[Any] | None = None,
) -> Reply:
    session, params = execution.session, sampling_params or {}
    sampling = _changed(execution.purpose.sampling, None, params)
    extra = {"max_new_tokens": params.get("max_new_tokens")}
    offered = session.sample.metadata.get("tools") if tools is None else tools
    return Reply.of(await session.reply(conversation, offered, sampling, extra))


def active() -> Execution:
    """The execution that the caller is part of."""
    found = _active.get()
    if found is None:
        raise EngineError("generate_single works only inside a custom generate function")
    return found


def _changed(sampling: Sampling, length: int | None, params: Mapping[str, Any]) -> Sampling:
    names = ("temperature", "top_p", "top_k", "stop", "stop_token_ids")
    changes: dict[str, Any] = {name: params[name] for name in names if name in params}
    if length is not None and params.get("max_new_tokens") is not None:
        longest = length + int(params["max_new_tokens"])
        changes["max_response_len"] = min(sampling.max_response_len, longest)
    return replace(sampling, **changes)
