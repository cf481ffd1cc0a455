"""A local HTTP server through which agents talk to the model as to any other."""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any
from uuid import uuid4

from aiohttp import web
from slime_core.data.template_certificate import TemplateDriftError
from slime_core.errors import ConfigError, EngineError, SlimeError
from slime_core.processes.proxies import reach_directly
from slime_core.processes.this_machine import network_address

from slime_sglang.agents import anthropic_messages, openai_chat
from slime_sglang.agents.chat_request import ChatRequest
from slime_sglang.agents.reply import Said, Turn
from slime_sglang.agents.session import AbortedError, RequestError, Session
from slime_sglang.agents.settings import AgentSettings

logger = logging.getLogger(__name__)

_BIGGEST_REQUEST = 256 * 1024**2
_PING_S = 10.0
_NO_RETRY = {"x-should-retry": "false"}
"""Clients need not try again what will fail again."""
_NOBODY_THERE = 499
"""Status of an answer that nobody is there to read."""
_BASES = ("", "/v1", "/v1/v1")
"""Clients differ in whether they add /v1 to the address they are given."""


class Endpoints:
    """OpenAI and Anthropic interfaces; lives in the event loop of the rollout.

    A request belongs to the session that its path (/session/{key}/v1/...) or its API key names.
    """

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._sessions: dict[str, Session] = {}
        self._runner: web.AppRunner | None = None
        self.url = ""
        """Address of the server, without a path."""

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be had.
        """
        app = web.Application(client_max_size=_BIGGEST_REQUEST)
        for prefix in ("", "/session/{session}"):
            for base in _BASES:
                path = prefix + base
                app.router.add_get(f"{path}/models", self._models)
                app.router.add_post(f"{path}/chat/completions", _speaking(openai_chat, self._chat))
                speaking = _speaking(anthropic_messages, self._chat)
                app.router.add_post(f"{path}/messages", speaking)
                counting = _speaking(anthropic_messages, self._count)
                app.router.add_post(f"{path}/messages/count_tokens", counting)
        app.router.add_get("/health", _healthy)
        app.router.add_route("*", "/{path:.*}", _nothing_here)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        host, port = self._settings.host, self._settings.port
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"agents cannot be served at --agent-host {host} --agent-port {port}: {error}"
            ) from error
        port = self._runner.addresses[0][1]
        self.url = f"http://{_reachable(host)}:{port}"
        reach_directly(_reachable(host), os.environ)  # by agents here, and commands they start

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def open(self, session: Session) -> str:
        """Answer requests of ``session``; its key."""
        key = f"slime-{uuid4().hex}"
        self._sessions[key] = session
        return key

    def close(self, key: str) -> None:
        """Refuse further requests of a session."""
        self._sessions.pop(key, None)

    def address(self, key: str) -> str:
        """Base URL of one session's endpoints."""
        return f"{self.url}/session/{key}/v1"

    def _session(self, request: web.Request) -> Session | None:
        words = request.headers.get("Authorization", "").split()
        given = (request.match_info.get("session"), request.headers.get("x-api-key"), *words[1:2])
        found = (self._sessions[key] for key in given if key in self._sessions)
        return next(found, None)

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": "slime", "object": "model", "created": 0, "owned_by": "slime"}
        return web.json_response({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request, session: Session, api: Any) -> web.StreamResponse:
        chat = _read(api, await _json(request))
        if chat.tools and self._settings.tool_call_parser is None:
            session.problem = ConfigError(
                "an agent has tools, so --sglang-tool-call-parser must say how the model writes "
                "calls (qwen25, llama3, glm45, deepseekv3, kimi_k2, ...)"
            )
            raise session.problem
        if chat.stream:
            return await _stream(request, session, chat, api, self._ask(session, chat))
        turn = await self._ask(session, chat)
        try:
            response = web.json_response(api.write(_said(session, turn, chat), chat))
            await _notice_a_leave()
            await response.prepare(request)
            await response.write_eof()
            _check_there(request)
        except BaseException:
            session.unheard(turn)
            raise
        return response

    async def _ask(self, session: Session, chat: ChatRequest) -> Turn:
        """The next turn. Nothing may be awaited between the check and the request it counts."""
        most = self._settings.max_turns
        if most is not None and session.num_requests >= most:
            raise TooManyTurnsError(f"the conversation has had its {most} turns (--max-turns)")
        with _refusing():
            return await session.reply(
                chat.messages, chat.tools, extra=chat.extra, may_call=chat.may_call
            )

    async def _count(self, request: web.Request, session: Session, api: Any) -> web.StreamResponse:
        chat = _read(api, {**await _json(request), "max_tokens": 1})
        with _refusing():
            template = session.template(chat.tools)
            tokens = template.ids(template.text(chat.messages, begin_turn=True))
        return web.json_response({"input_tokens": len(tokens)})


def _said(session: Session, turn: Turn, chat: ChatRequest) -> Said:
    """What a turn said, with as much of it as was asked for."""
    if not chat.log_probs:
        return turn.said
    return replace(turn.said, token_texts=session.token_texts(turn))


async def _notice_a_leave() -> None:
    """Let the loop look at connections: what is written to one that is closed seems to arrive.

    In the first round the loop may go on with its caller before it looks.
    """
    for _ in range(2):
        await asyncio.sleep(0)


def _check_there(request: web.Request) -> None:
    """Raise ``ConnectionResetError`` if what was written cannot have reached the client."""
    if request.transport is None or request.transport.is_closing():
        raise ConnectionResetError("the client has gone")


class TooManyTurnsError(RequestError):
    """A session has made as many requests as it may."""


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise RequestError(f"the request is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("the request is not a JSON object")
    return body


def _read(api: ModuleType, body: dict[str, Any]) -> ChatRequest:
    """The request that ``body`` is; ``RequestError`` also where a part of it has another shape."""
    try:
        return api.read(body)
    except (AttributeError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RequestError(f"the request cannot be read: {what}") from error


@contextmanager
def _refusing() -> Generator[None]:
    """Tell an agent why its conversation cannot be answered: a chat template may raise anything."""
    try:
        yield
    except SlimeError:
        raise
    except Exception as error:  # the boundary to what agents say
        logger.exception("an agent's conversation was refused")
        what = f"{type(error).__name__}: {error}"
        raise RequestError(f"the conversation cannot be answered: {what}") from error


Handler = Callable[[web.Request, Session, Any], Awaitable[web.StreamResponse]]


def _speaking(
    api: ModuleType, handler: Handler
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """``handler`` for the session of a request, with errors in the words of ``api``."""

    async def answer(request: web.Request) -> web.StreamResponse:
        endpoints: Any = getattr(handler, "__self__")  # noqa: B009 -- a bound method's owner
        session: Session | None = endpoints._session(request)
        if session is None:
            message = "no session has this key, or it has ended"
            refused = api.error(message, "authentication_error")
            return web.json_response(refused, status=401, headers=_NO_RETRY)
        try:
            return await handler(request, session, api)
        except (SlimeError, AbortedError) as error:
            status, kind, message = _refusal(session, error)
            refused = api.error(message, kind)
            return web.json_response(refused, status=status, headers=_NO_RETRY)
        except ConnectionError as error:
            logger.info("an agent did not wait for its answer: %s", error)
            return web.Response(status=_NOBODY_THERE)

    return answer


def _refusal(session: Session, error: BaseException) -> tuple[int, str, str]:
    """HTTP status, kind and message of an error; what must stop the run is noted."""
    match error:
        case AbortedError():
            return 503, "overloaded_error", "the rollout has ended"
        case TooManyTurnsError():
            return 429, "rate_limit_error", str(error)
        case EngineError():
            session.problem = error
            return 502, "api_error", str(error)
        case TemplateDriftError() | RequestError() | ConfigError():
            return 400, "invalid_request_error", str(error)
        case _:
            return 500, "api_error", str(error)


async def _stream(
    request: web.Request,
    session: Session,
    chat: ChatRequest,
    api: Any,
    asking: Coroutine[Any, Any, Turn],
) -> web.StreamResponse:
    """The turn as a stream; a client that goes away, whenever it does, ends its request."""
    answer, is_told = asyncio.create_task(asking), False
    try:
        done, _ = await asyncio.wait([answer], timeout=_PING_S)
        if done:
            answer.result()  # waits: is done; what fails at once is an ordinary error
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await _keep_waiting(response, answer)
            turn = answer.result()  # waits: is done
            for event in api.stream(_said(session, turn, chat), chat):
                await response.write(event.encode())
            _check_there(request)
            is_told = True
        except (SlimeError, AbortedError) as error:
            _, kind, message = _refusal(session, error)
            logger.warning("a streamed answer failed: %s", message)
            text = json.dumps(api.error(message, kind))
            await response.write(f"event: error\ndata: {text}\n\n".encode())
        await response.write_eof()
        return response
    finally:
        answer.cancel()
        is_said = answer.done() and not answer.cancelled() and answer.exception() is None
        if is_said and not is_told:
            session.unheard(answer.result())  # waits: is done


async def _keep_waiting(response: web.StreamResponse, answer: "asyncio.Future[Turn]") -> None:
    """Comments until the turn is there, so that clients do not give up."""
    while not answer.done():
        await response.write(b": thinking\n\n")
        await asyncio.wait([answer], timeout=_PING_S)
    await _notice_a_leave()


def _reachable(host: str) -> str:
    """An address for agents on other machines too, where the server listens on every one."""
    return network_address() if host in ("0.0.0.0", "::") else host


async def _nothing_here(request: web.Request) -> web.Response:
    """What agents are told whose client uses another interface."""
    message = (
        f"{request.method} {request.path} is not served: there are POST /v1/chat/completions "
        "(OpenAI), POST /v1/messages (Anthropic), POST /v1/messages/count_tokens and GET /v1/models"
    )
    refused = openai_chat.error(message, "not_found_error")
    return web.json_response(refused, status=404, headers=_NO_RETRY)


async def _healthy(request: web.Request) -> web.Response:
    return web.Response()
