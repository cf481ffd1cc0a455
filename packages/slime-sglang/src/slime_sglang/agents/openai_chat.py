"""The OpenAI interface: POST /v1/chat/completions."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast
from uuid import uuid4

from slime_core.data.chat import Message

from slime_sglang.agents.chat_request import Body, ChatRequest, limits, sequence_of, text_of
from slime_sglang.agents.reply import Said
from slime_sglang.agents.session import RequestError

_ROLES = ("system", "developer", "user", "assistant", "tool")


def read(body: Body) -> ChatRequest:
    """The request that ``body`` is.

    Temperature, top_p and the like are left out: samples are drawn as the run draws them.

    Raises:
        RequestError: for what cannot be done token by token.
    """
    if body.get("n") not in (None, 1):
        raise RequestError("`n` must be 1: send the request again for another answer")
    if (body.get("response_format") or {}).get("type", "text") != "text":
        raise RequestError("`response_format` is not supported: answers are sampled freely")
    if body.get("top_logprobs"):
        raise RequestError("`top_logprobs` is not supported: `logprobs` gives the sampled tokens'")
    if body.get("functions"):
        raise RequestError("`functions` is not supported: send `tools`")
    choice = body.get("tool_choice") or "auto"
    if choice not in ("auto", "none"):
        raise RequestError(f"`tool_choice` must be auto or none, got {choice!r}")
    messages = [_message(message) for message in sequence_of(body, "messages")]
    if not messages:
        raise RequestError("`messages` is empty")
    longest = body.get("max_completion_tokens") or body.get("max_tokens")
    return ChatRequest(
        messages=messages,
        tools=list(sequence_of(body, "tools")) or None,
        may_call=choice != "none",
        extra=limits(longest, body.get("stop")),
        stream=bool(body.get("stream")),
        log_probs=bool(body.get("logprobs")),
        tells_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        model=str(body.get("model") or "slime"),
    )


def _message(given: Any) -> Message:
    if not isinstance(given, Mapping):
        raise RequestError(f"a message must be an object, got {given!r:.80}")
    message = dict(cast("Body", given))
    if message.get("role") not in _ROLES:
        raise RequestError(f"the role of a message must be one of {_ROLES}, got {given!r:.80}")
    if message["role"] == "developer":
        message["role"] = "system"
    message["content"] = text_of(message.get("content"))
    return message


def write(said: Said, request: ChatRequest) -> dict[str, Any]:
    """The answer as one object."""
    message: dict[str, Any] = {"role": "assistant", "content": said.content or None}
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.tool_calls:
        message["tool_calls"] = list(said.tool_calls)
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _log_probs(said) if request.log_probs else None,
        "finish_reason": "tool_calls" if said.tool_calls else said.finish_reason,
    }
    return {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": said.num_prompt_tokens,
            "completion_tokens": said.num_tokens,
            "total_tokens": said.num_prompt_tokens + said.num_tokens,
        },
    }


def stream(said: Said, request: ChatRequest) -> Iterator[str]:
    """The answer as server-sent events; one without a choice only for who asked for it."""
    whole = write(said, request)
    choice = whole["choices"][0]
    message: dict[str, Any] = choice["message"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{key: message[key]} for key in ("reasoning_content", "content") if message.get(key)]
    for index, call in enumerate(message.get("tool_calls") or ()):
        deltas.append({"tool_calls": [{"index": index, **call}]})
    ends = [*((delta, None) for delta in deltas), ({}, choice["finish_reason"])]
    for delta, reason in ends:
        log_probs = choice["logprobs"] if delta.get("content") else None
        part = {"index": 0, "delta": delta, "logprobs": log_probs, "finish_reason": reason}
        yield _event(whole, [part], None)
    if request.tells_usage:
        yield _event(whole, [], whole["usage"])
    yield "data: [DONE]\n\n"


def _event(whole: Mapping[str, Any], choices: list[Any], usage: Any) -> str:
    chunk = {**whole, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
    return f"data: {json.dumps(chunk)}\n\n"


def _log_probs(said: Said) -> dict[str, Any]:
    pairs = zip(said.token_texts, said.log_probs, strict=True)
    return {
        "content": [
            {
                "token": text,
                "logprob": value,
                "bytes": list(text.encode(errors="replace")),
                "top_logprobs": [],
            }
            for text, value in pairs
        ]
    }


def error(message: str, kind: str) -> dict[str, Any]:
    """An error as clients of this interface read it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
