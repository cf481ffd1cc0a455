"""An HTTP server that answers like a router with one engine behind it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from slime_core.data.chat import Tokenizer
from slime_core.types import Sample
from slime_sglang.answers.engine_requests import Recovering
from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.rollout.generation import Generation, GenerationSpec

Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


class Server:
    """Router and engine in one: answers what the test says, remembers what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.num_aborts = 0
        self.at_once = self.most_at_once = 0

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("X-SMG-Routing-Key", ""))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        status, value = self._reply(body)
        return web.json_response(value, status=status)

    async def abort(self, request: web.Request) -> web.Response:
        assert (await request.json())["abort_all"] is True
        self.num_aborts += 1
        return web.Response()

    async def start(self) -> tuple[web.AppRunner, str]:
        app = web.Application()
        app.router.add_post("/generate", self.generate)
        app.router.add_post("/abort_request", self.abort)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        return runner, f"http://{host}:{port}"


def answered(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    meta = {
        "output_token_logprobs": [[-0.5, 7, None]],
        "completion_tokens": 1,
        "finish_reason": {"type": "stop"},
        "weight_version": "3",
    }
    return 200, {"text": "h", "meta_info": meta}


class Script:
    """A model that says what the test says, in the tokens it says, each with another log-prob.

    ``ids`` maps what it was asked (a text) to the tokens of its answer.
    """

    def __init__(
        self, tokenizer: Tokenizer, ids: Callable[[str], Sequence[int]], *, reason: str = "stop"
    ) -> None:
        self._tokenizer = tokenizer
        self._ids = ids
        self._reason = reason
        self.said: list[tuple[list[int], list[float]]] = []
        self._num_tokens = 0

    def __call__(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked = self._tokenizer.decode(body["input_ids"], skip_special_tokens=False)
        ids = list(self._ids(asked))
        numbers = range(self._num_tokens, self._num_tokens + len(ids))
        self._num_tokens += len(ids)
        log_probs = [-(number % 997) / 1000 - 0.001 for number in numbers]
        self.said.append((ids, log_probs))
        reason: dict[str, Any] = {"type": self._reason}
        if self._reason == "stop" and ids:
            reason["matched"] = ids[-1]
        meta = {
            "output_token_logprobs": [[p, i, None] for p, i in zip(log_probs, ids, strict=True)],
            "completion_tokens": len(ids),
            "finish_reason": reason,
            "weight_version": "3",
        }
        return 200, {"text": "", "meta_info": meta}


def run(
    server: Server,
    samples: Sequence[Sample],
    *,
    check_alive: Callable[[], None] = lambda: None,
    fleet: Recovering | None = None,
    evaluation: bool = False,
    abort_first: bool = False,
    tokenizer: Tokenizer | None = None,
    call: Callable[[Generation, Sample], Any] = lambda generation, sample: generation(sample),
    **changes: Any,
) -> list[Any]:
    async def scenario() -> list[Any]:
        runner, url = await server.start()
        fields = {
            "router_url": url,
            "engine_urls": [url],
            "sampling": Sampling(max_response_len=8),
            "concurrency": 4,
            **changes,
        }
        try:
            spec = GenerationSpec(**fields)
            async with Generation(spec, tokenizer, check_alive, fleet) as generation:
                generation.begin(1)
                if evaluation:
                    generation.begin_evaluation("set", Sampling(temperature=0, max_response_len=5))
                if abort_first:
                    await generation.abort()
                return list(await asyncio.gather(*(call(generation, s) for s in samples)))
        finally:
            await runner.cleanup()

    return asyncio.run(scenario())
