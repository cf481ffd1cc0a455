"""Ask an SGLang server what a teacher thinks of each response token (on-policy distillation)."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from slime_core.errors import EngineError
from slime_core.scores import is_broken
from slime_core.types import Sample

from slime_sglang.client import message_of
from slime_sglang.together import together

Teach = Callable[[Sequence[Sample]], Awaitable[None]]
"""Sets ``teacher_log_probs`` of every sample that can be learnt from."""

_ATTEMPTS = 4
_CONNECT_S = 10.0
_TIMEOUT_S = 600.0
"""For one answer; a long queue at the teacher counts."""
_CONCURRENCY = 64


def _never(since: float) -> bool:
    """Nobody starts the teacher again."""
    return False


class Teacher:
    """A server that holds the teacher; lives in one event loop, ``close`` it there.

    The teacher reads the student's tokens, so both must have the same vocabulary.
    """

    def __init__(
        self,
        url: str,
        *,
        concurrency: int = _CONCURRENCY,
        timeout_s: float = _TIMEOUT_S,
        retry_s: float = 0.5,
        may_recover: Callable[[float], bool] = _never,
    ) -> None:
        """``may_recover``: whether what failed since a time may be a loss that is repaired."""
        self._given = url
        self._url = endpoint(url)
        self._limit = asyncio.Semaphore(concurrency)
        self._timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
        self._retry_s = retry_s
        self._may_recover = may_recover
        self._http: httpx.AsyncClient | None = None
        self._largest = -1
        """Every token up to this is known to be in the teacher's vocabulary."""
        self._probing = asyncio.Lock()

    async def __call__(self, samples: Sequence[Sample]) -> None:
        """Fill ``teacher_log_probs`` where it is missing.

        Raises:
            EngineError: naming --rm-url, when the teacher cannot be reached, refuses the tokens, or
                answers for other tokens than it was asked about.
        """
        waiting = [s for s in samples if s.teacher_log_probs is None and not is_broken(s)]
        if waiting:
            await self._check_vocabulary(max(waiting, key=_largest))
        await together(*(self._judge(sample) for sample in waiting))

    async def close(self) -> None:
        """Drop the connections."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _check_vocabulary(self, sample: Sample) -> None:
        """Refuse a sample with a token that the teacher has no embedding for.

        An engine that reads such a token dies of it; one that is asked for its log-probability says
        that there is none.
        """
        async with self._probing:
            largest = _largest(sample)
            if largest <= self._largest:
                return
            await self._ask({**_request([0], 0), "token_ids_logprob": [largest]}, sample)
            self._largest = largest

    async def _judge(self, sample: Sample) -> None:
        if not sample.response_length:
            sample.teacher_log_probs = []
            return
        # The row before a token predicts it; SGLang's first entry has no probability.
        body = _request(sample.tokens, max(0, sample.prompt_length - 1))
        async with self._limit:
            answer = await self._ask(body, sample)
        sample.teacher_log_probs = self._log_probs(answer, sample)

    async def _ask(self, body: dict[str, Any], sample: Sample) -> Any:
        """The answer; what fails while the teacher is started again does not count."""
        began, failures = time.monotonic(), 0
        while True:
            try:
                return await self._post(body, sample)
            except (httpx.HTTPError, ValueError) as error:
                failures += not self._may_recover(began)
                if failures >= _ATTEMPTS:
                    what = f"{type(error).__name__}: {error}".rstrip(": ")
                    raise EngineError(
                        f"the teacher at --rm-url {self._given} failed {_ATTEMPTS} times, lastly "
                        f"with {what}: is an SGLang server running there?"
                    ) from error
            await asyncio.sleep(min(10.0, self._retry_s * 2 ** max(0, failures - 1)))

    async def _post(self, body: dict[str, Any], sample: Sample) -> Any:
        if self._http is None:  # made here, because it belongs to the loop that uses it
            limits = httpx.Limits(max_connections=None)
            self._http = httpx.AsyncClient(timeout=self._timeout, limits=limits, trust_env=False)
        reply = await self._http.post(self._url, json=body)
        if 400 <= reply.status_code < 500:
            raise EngineError(
                f"the teacher at --rm-url {self._given} refused sample {sample.index} "
                f"({reply.status_code}: {message_of(reply)}); its largest token is "
                f"{_largest(sample)} of {len(sample.tokens)}: the teacher must have the "
                "student's vocabulary, and room for its longest prompt and response"
            )
        reply.raise_for_status()
        return reply.json()

    def _log_probs(self, answer: Any, sample: Sample) -> list[float]:
        """R log-probabilities, of exactly the response tokens."""
        meta: Any = answer.get("meta_info") if isinstance(answer, dict) else None
        rows: Any = meta.get("input_token_logprobs") if isinstance(meta, dict) else None
        if not isinstance(rows, list):
            raise EngineError(
                f"the teacher at --rm-url {self._given} answered without input_token_logprobs: it "
                "must be an SGLang server's /generate"
            )
        rows = rows[-sample.response_length :]
        response = sample.tokens[sample.prompt_length :]
        try:
            judged = [int(row[1]) for row in rows]
            found = [math.nan if row[0] is None else float(row[0]) for row in rows]
        except (TypeError, ValueError, LookupError) as error:
            raise EngineError(
                f"the teacher at --rm-url {self._given} answered with input_token_logprobs that "
                f"are not [log-probability, token, ...]: {rows!r:.300}"
            ) from error
        if judged != response:
            raise EngineError(
                f"the teacher at --rm-url {self._given} judged {len(judged)} tokens "
                f"{_shown(judged)} where sample {sample.index} has {len(response)} response tokens "
                f"{_shown(response)}: it must be an SGLang server that takes input_ids as they are"
            )
        for position, value in enumerate(found):
            if not math.isfinite(value):
                raise EngineError(
                    f"the teacher at --rm-url {self._given} gives response token {position} "
                    f"({response[position]}) of sample {sample.index} the log-probability {value}: "
                    "the teacher must have the student's vocabulary"
                )
        return found


def _request(tokens: list[int], start: int) -> dict[str, Any]:
    """No token is drawn; those behind ``start`` come back with their log-probabilities."""
    return {
        "input_ids": tokens,
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": start,
    }


def _largest(sample: Sample) -> int:
    return max(sample.tokens, default=-1)


def endpoint(url: str) -> str:
    """``--rm-url`` with /generate where it names only the server."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") or "/generate"))


def _shown(tokens: Sequence[int]) -> str:
    return str(list(tokens[:6]))[:-1] + (", ...]" if len(tokens) > 6 else "]")
