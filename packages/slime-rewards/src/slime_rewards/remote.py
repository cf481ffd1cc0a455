"""Ask a reward server: ``--rm-type remote_rm``."""

from typing import Any

import httpx
import tenacity
from slime_core.types import Sample

_ATTEMPTS = 10
_CONNECTIONS = 64
_TIMEOUT_S = 120.0


class RemoteReward:
    """POSTs {prompt, response, label} and takes the JSON answer, a number or an object."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, samples: list[Sample]) -> list[Any]:
        """Rewards in the order of ``samples``; a call that fails is tried ten times."""
        limits = httpx.Limits(max_connections=_CONNECTIONS)
        async with httpx.AsyncClient(limits=limits, timeout=_TIMEOUT_S) as client:
            return [await self._score(client, sample) for sample in samples]

    async def _score(self, client: httpx.AsyncClient, sample: Sample) -> Any:
        payload = {"prompt": sample.prompt, "response": sample.response, "label": sample.label}
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=tenacity.wait_exponential(max=30) + tenacity.wait_random(0, 1),
            retry=tenacity.retry_if_exception_type(httpx.HTTPError),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                answer = await client.post(self._url, json=payload)
                answer.raise_for_status()
                return answer.json()
        raise AssertionError("unreachable: the last attempt raises")
