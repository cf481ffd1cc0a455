"""Requests to the engines through the router: tried again, gone on with, aborted."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from slime_core.config.sync import UpdateMode
from slime_core.data.chat import Tokenizer
from slime_core.errors import EngineError
from slime_core.types import Sample, Status

from slime_sglang.answers.continued import (
    Answer,
    ended_by_length,
    is_cut_off,
    joined,
    rest_of,
    token_ids,
    with_versions,
)
from slime_sglang.answers.reading import UnreadableError, read_answer
from slime_sglang.together import together

_ROUTING_HEADER = "X-SMG-Routing-Key"
_ATTEMPTS = 3
_RETRY_S = 0.5
_ABORT_S, _ABORTED_S = 10.0, 120.0
"""For one engine to be told, and for requests to end after that."""
_SHOWN = 1000
_TOO_LONG = (
    "; --rollout-max-context-len N keeps prompt and response together within N tokens, and "
    "--rollout-max-prompt-len N leaves out prompts of more than N tokens"
)
SAYS_TOO_LONG = ("longer than the model", "maximum context length", "maximum allowed length")
"""By one of these SGLang's refusal of a prompt, alone or with its response, is known."""
_ABORTED_UNREAD = 499
"""What an engine says of a request that a publish aborted before it was scheduled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpec:
    """Whom to ask, and for how long."""

    router_url: str
    engine_urls: Sequence[str]
    timeout_s: float
    """For one answer, and for all attempts to get it."""
    weight_update_mode: UpdateMode
    """What a publish does to requests that run."""


class Recovering(Protocol):
    """Engines of which some may be away for a while."""

    @property
    def urls(self) -> Sequence[str]:
        """Those that are up."""
        ...

    def may_recover(self, since: float) -> bool:
        """Whether what has failed since ``since`` (monotonic) may be a loss that is repaired."""
        ...


class EngineRequests:
    """Asks engines; an async context manager that lives in one event loop."""

    def __init__(
        self,
        spec: RequestSpec,
        tokenizer: Tokenizer,
        check_alive: Callable[[], None],
        fleet: Recovering | None = None,
    ) -> None:
        """``fleet``: engines that are started again when they are lost; requests wait for them."""
        self.spec = spec
        self.version: int | None = None
        """The weights that all engines are known to have at least."""
        self._aborting_since: float | None = None
        self._num_under_way = 0
        self._tokenizer = tokenizer
        self._check_alive = check_alive
        self._fleet = fleet
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "EngineRequests":
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self.spec.timeout_s, sock_connect=30.0),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    @property
    def is_aborting(self) -> bool:
        """Whether nothing is wanted, since ``abort`` and until the next ``begin``."""
        return self._aborting_since is not None

    def begin(self) -> None:
        """Requests are wanted from now on."""
        self._aborting_since = None

    async def abort(self) -> None:
        """Abort what runs; nothing is sent until the next ``begin``. To be repeated until it ends.

        Raises:
            EngineError: requests go on long after the first abort, though no engine is known to be
                away.
        """
        now = time.monotonic()
        since = self._aborting_since = self._aborting_since or now
        urls = self.spec.engine_urls if self._fleet is None else self._fleet.urls
        problems = await together(*(self._abort_engine(url) for url in urls))
        if not self._num_under_way or now - since < _ABORTED_S:
            return
        if self._fleet is None or not self._fleet.may_recover(since):
            said = "; ".join(problem for problem in problems if problem)
            raise EngineError(
                f"requests still run {_ABORTED_S:g} s after the engines were told to abort them: "
                f"{self._num_under_way}{said and f'; {said}'}"
            )

    async def ask(self, body: Mapping[str, Any], sample: Sample) -> dict[str, Any] | None:
        """The whole answer to a /generate request, also when publishes interrupt it.

        None when ``sample`` says why there is none: it is then ``ABORTED``, or ``FAILED`` because
        the engine refused it.

        Raises:
            EngineError: no engine answered, though none is known to be away.
        """
        parts: list[dict[str, Any]] = []
        rest: Mapping[str, Any] | None = body
        skip: bool = body["sampling_params"].get("skip_special_tokens", False)
        since = time.monotonic()
        while rest is not None:
            asked_at = None if self.spec.weight_update_mode == "abort" else self.version
            answer = await self._post(rest, sample)
            if answer is None and sample.status is Status.ABORTED and parts:
                break  # what was written is kept
            if answer is None:
                return None
            answer = ended_by_length(rest, answer)
            parts.append(with_versions(answer, asked_at))
            if not is_cut_off(answer) or self.is_aborting:
                break
            if token_ids(answer):
                since = time.monotonic()
            elif time.monotonic() - since > self.spec.timeout_s:
                raise EngineError(
                    f"{self.spec.router_url}/generate aborted sample {sample.index} again and "
                    f"again for {self.spec.timeout_s:g} s without a token"
                )
            await asyncio.sleep(_RETRY_S / 10)  # the engine is paused; it queues what comes
            if self.is_aborting:
                break
            rest = rest_of(rest, answer)
        return joined(parts, self._tokenizer, skip_special_tokens=skip)

    async def _post(self, body: Mapping[str, Any], sample: Sample) -> dict[str, Any] | None:
        """One answer, which may be cut off; None as for ``ask``."""
        headers = {_ROUTING_HEADER: sample.session_id or ""}
        problem, began, failures, sent = "", time.monotonic(), 0, 0
        while failures < _ATTEMPTS and time.monotonic() - began < self.spec.timeout_s:
            if problem:
                await asyncio.sleep(_RETRY_S * max(1, failures))
                self._check_alive()
            if self.is_aborting:
                sample.status = Status.ABORTED
                return None
            sent += 1
            status, answer = await self._once(body, headers)
            if not isinstance(answer, str):
                return answer
            problem = answer
            if self.is_aborting:
                sample.status = Status.ABORTED
                return None
            if status == _ABORTED_UNREAD:
                continue
            if 400 <= status < 500:
                sample.status = Status.FAILED
                advice = _TOO_LONG if any(word in problem for word in SAYS_TOO_LONG) else ""
                sample.metadata["error"] = f"the engine refused the request: {problem}{advice}"
                return None
            if self._fleet is None or not self._fleet.may_recover(began):
                failures += 1
        self._check_alive()
        times = "once" if sent == 1 else f"{sent} times"
        raise EngineError(
            f"{self.spec.router_url}/generate failed {times} within {self.spec.timeout_s:g} s "
            f"(--sglang-router-request-timeout-secs), lastly with {problem}"
        )

    async def _once(
        self, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[int, Answer | str]:
        """HTTP status, 0 without one, and the answer, or a text that says why there is none."""
        assert self._http is not None, "used inside `async with`"
        url, status = f"{self.spec.router_url}/generate", 0
        self._num_under_way += 1
        try:
            async with self._http.post(url, json=body, headers=headers) as reply:
                text = await reply.text()
                status = reply.status
            if status == 200:
                return 200, read_answer(text)
        except UnreadableError as error:
            return status, f"an answer that is none of SGLang's /generate: {error}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return status, f"no answer: {type(error).__name__}: {error}"[:_SHOWN]
        finally:
            self._num_under_way -= 1
        return status, f"{status}: {text}"[:_SHOWN]

    async def _abort_engine(self, url: str) -> str:
        """What is wrong with an engine that could not be told; it is told again."""
        assert self._http is not None, "used inside `async with`"
        timeout = aiohttp.ClientTimeout(total=_ABORT_S)
        try:
            async with self._http.post(
                f"{url}/abort_request", json={"rid": "", "abort_all": True}, timeout=timeout
            ) as reply:
                await reply.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self._check_alive()
            return f"{url}/abort_request: {type(error).__name__}: {error}".rstrip(": ")
        return "" if reply.ok else f"{url}/abort_request answered {reply.status}"
