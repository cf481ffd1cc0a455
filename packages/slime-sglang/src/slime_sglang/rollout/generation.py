"""Turn pending samples into finished ones, by one request or by a function of the user's."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from slime_core.config.sync import UpdateMode
from slime_core.data.chat import Tokenizer
from slime_core.data.template_certificate import TemplateDriftError
from slime_core.errors import ConfigError, EngineError
from slime_core.hooks.adapters import custom_generate
from slime_core.hooks.contracts import GenerateFunction
from slime_core.plugins.mistakes import where
from slime_core.scores import WHERE
from slime_core.types import Sample, Status

from slime_sglang.agents.endpoints import Endpoints
from slime_sglang.agents.execution import Execution, generate_single
from slime_sglang.agents.session import AbortedError, Backend, Session
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.answers.engine_requests import EngineRequests, Recovering, RequestSpec
from slime_sglang.answers.sampling_params import Sampling, sample_seed
from slime_sglang.answers.transcript import append, mask_earlier, prepare

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class _Purpose:
    """What samples are drawn for, and how."""

    sampling: Sampling
    evaluation: bool
    label: str
    """The iteration, or the evaluation set: part of every request's seed."""


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
        self._requests = EngineRequests(
            RequestSpec(
                router_url=spec.router_url,
                engine_urls=spec.engine_urls,
                timeout_s=spec.timeout_s,
                weight_update_mode=spec.weight_update_mode,
            ),
            tokenizer,
            check_alive,
            fleet,
        )
        self._tokenizer = tokenizer
        self._purpose = _Purpose(spec.sampling, False, "0")
        self._limit = asyncio.Semaphore(spec.concurrency)
        self._custom: dict[str, GenerateFunction] = {}
        self._sessions: set[Session] = set()
        self._endpoints: Endpoints | None = None
        self._starting = asyncio.Lock()
        if spec.custom_generate is not None:
            self._load(spec.custom_generate)

    async def __aenter__(self) -> "Generation":
        await self._requests.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._endpoints is not None:
            await self._endpoints.stop()
            self._endpoints = None
        await self._requests.__aexit__(*exc)

    @property
    def version(self) -> int | None:
        """The weights that all engines are known to have at least."""
        return self._requests.version

    @version.setter
    def version(self, version: int | None) -> None:
        self._requests.version = version

    def begin(self, iteration: int) -> None:
        """Generate for training from now on."""
        self._purpose = _Purpose(self.spec.sampling, False, str(iteration))
        self._requests.begin()

    def begin_evaluation(self, label: str, sampling: Sampling) -> None:
        """Generate for an evaluation from now on; ``label`` says which."""
        self._purpose = _Purpose(sampling, True, f"eval/{label}")
        self._requests.begin()

    async def __call__(self, sample: Sample) -> Sample | list[Sample]:
        """Complete one sample; a user function that fails makes it ``Status.FAILED``."""
        return await self._generate(sample, self._purpose)

    async def greedy(self, sample: Sample) -> Sample | list[Sample]:
        """The same with the likeliest token at every step."""
        greedy = replace(self._purpose.sampling, temperature=0.0)
        return await self._generate(sample, replace(self._purpose, sampling=greedy))

    async def _generate(self, sample: Sample, purpose: _Purpose) -> Sample | list[Sample]:
        async with self._limit:
            if self._requests.is_aborting:
                sample.status = Status.ABORTED
                return sample
            if sample.session_id is None:
                sample.session_id = uuid4().hex
            path = sample.generate_function_path or self.spec.custom_generate
            if path is None:
                return await self.request(sample, purpose)
            session = Session(sample, self._backend(purpose))
            self._sessions.add(session)
            try:
                with self._execution(session, purpose).under_way():
                    return await self._complete(path, sample, purpose, session)
            finally:
                self._sessions.discard(session)

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
            sample.reward = None  # what it set before it failed is of no answer
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
            ask=self._requests.ask,
            tokenizer=self._tokenizer,
            sampling=purpose.sampling,
            settings=self.spec.agents,
            seed=lambda sample, number: self._seed(sample, purpose, number),
        )

    def _execution(self, session: Session, purpose: _Purpose) -> Execution:
        return Execution(
            session=session,
            sampling=purpose.sampling,
            request=lambda sample, sampling: self.request(
                sample, replace(purpose, sampling=sampling)
            ),
            endpoints=self.endpoints,
            agents=self.spec.agents,
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
        answer = await self._requests.ask(body, sample)
        if answer is not None:
            append(sample, answer)
        return sample

    def _seed(self, sample: Sample, purpose: _Purpose, number: int = 0) -> int:
        parts = (sample.index, number) if number else (sample.index,)
        return sample_seed(self.spec.seed, purpose.label, *parts)

    async def abort(self) -> None:
        """Abort what runs and let nothing new start until the next ``begin``."""
        for session in self._sessions:
            session.aborted.set()
        await self._requests.abort()
