"""Requests to the engines through the router: tried again, gone on with, aborted."""

import asyncio
import json
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
    ended_by_length,
    is_cut_off,
    joined,
    rest_of,
    token_ids,
    with_versions,
)

_ROUTING_HEADER = "X-SMG-Routing-Key"
_ATTEMPTS = 3
_RETRY_S = 0.5
_ABORT_S = 10.0
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
        self.is_aborting = False
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

    def begin(self) -> None:
        """Requests are wanted from now on."""
        self.is_aborting = False

    async def abort(self) -> None:
        """Abort what runs; nothing is sent until the next ``begin``."""
        self.is_aborting = True
        urls = self.spec.engine_urls if self._fleet is None else self._fleet.urls
        await asyncio.gather(*(self._abort_engine(url) for url in urls))

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
            try:
                status, answer = await self._once(body, headers)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                status, answer = 0, {"text": f"{type(error).__name__}: {error}"}
            if status == 200:
                return answer
            problem = f"{status or 'no answer'}: {json.dumps(answer)[:1000]}"
            if self.is_aborting:
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
        self._check_alive()
        times = "once" if sent == 1 else f"{sent} times"
        raise EngineError(
            f"{self.spec.router_url}/generate failed {times} within {self.spec.timeout_s:g} s "
            f"(--sglang-router-request-timeout-secs), lastly with {problem}"
        )

    async def _once(
        self, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]]:
        assert self._http is not None, "used inside `async with`"
        url = f"{self.spec.router_url}/generate"
        async with self._http.post(url, json=body, headers=headers) as reply:
            text = await reply.text()
            if reply.status == 200:
                return 200, json.loads(text)
            return reply.status, {"text": text}

    async def _abort_engine(self, url: str) -> None:
        assert self._http is not None, "used inside `async with`"
        timeout = aiohttp.ClientTimeout(total=_ABORT_S)
        try:
            async with self._http.post(
                f"{url}/abort_request", json={"rid": "", "abort_all": True}, timeout=timeout
            ) as reply:
                await reply.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self._check_alive()
            if self._fleet is not None:
                return  # lost, or soon found to be; what it was asked ends with it
            raise EngineError(f"{url} did not abort its requests: {error}") from error
