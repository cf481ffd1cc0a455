"""Ask servers: ``--rm-type remote_rm``, and what other rewards ask over HTTP."""

from typing import Any

import httpx
import tenacity
from slime_core.types import Sample

from slime_rewards.gate import Gate

_ATTEMPTS = 10
_CONNECTIONS = 64
_PASSING = frozenset({408, 425, 429})
"""Refusals that may not last; so may what a server calls its own fault."""


class Server:
    """POSTs JSON to an address; a call that fails is tried again, ten times in all."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._context = httpx.create_ssl_context()
        self._gate = Gate(_CONNECTIONS)

    async def ask(self, url: str, payload: Any) -> Any:
        """The answer, from JSON.

        Raises:
            httpx.HTTPError: the last try failed, too, or the server refused.
            ValueError: the answer is not JSON.
        """
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_exponential(max=30) + tenacity.wait_random(0, 1),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                return await self._post(url, payload)
        raise AssertionError("unreachable: the last attempt raises")

    async def _post(self, url: str, payload: Any) -> Any:
        async with (
            self._gate(),
            httpx.AsyncClient(timeout=self._timeout_s, verify=self._context) as client,
        ):
            answer = await client.post(url, json=payload)
        answer.raise_for_status()
        return answer.json()


def remote_payload(sample: Sample) -> dict[str, Any]:
    """What a reward server is sent."""
    return {"prompt": sample.prompt, "response": sample.response, "label": sample.label}


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return status >= 500 or status in _PASSING
    return isinstance(error, httpx.TransportError)
