"""The Anthropic interface: POST /v1/messages."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast
from uuid import uuid4

from slime_core.data.chat import Message

from slime_sglang.agents.chat_request import Body, ChatRequest, limits, sequence_of, text_of
from slime_sglang.agents.reply import Said
from slime_sglang.agents.session import RequestError


def read(body: Body) -> ChatRequest:
    """The request that ``body`` is, in the form of the OpenAI interface.

    Raises:
        RequestError: for what cannot be done token by token.
    """
    choice = (body.get("tool_choice") or {}).get("type", "auto")
    if choice not in ("auto", "none"):
        raise RequestError(f"`tool_choice` must be of type auto or none, got {choice!r}")
    system = text_of(body.get("system"))
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for message in sequence_of(body, "messages"):
        messages += _messages(message)
    if not messages:
        raise RequestError("`messages` is empty")
    tools = [_tool(tool) for tool in sequence_of(body, "tools")]
    return ChatRequest(
        messages=messages,
        tools=tools or None,
        may_call=choice != "none",
        extra=limits(body.get("max_tokens"), body.get("stop_sequences")),
        stream=bool(body.get("stream")),
        model=str(body.get("model") or "slime"),
    )


def _tool(tool: Body) -> dict[str, Any]:
    if "input_schema" not in tool:
        raise RequestError(f"the tool {tool.get('name')!r} has no input_schema")
    function = {
        "name": tool.get("name"),
        "description": tool.get("description") or "",
        "parameters": tool["input_schema"],
    }
    return {"type": "function", "function": function}


def _messages(given: Any) -> list[Message]:
    if not isinstance(given, Mapping):
        raise RequestError(f"a message must be an object, got {given!r:.80}")
    message = cast("Body", given)
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise RequestError(f"the role of a message must be user or assistant, got {role!r}")
    if not isinstance(content, list):
        return [{"role": role, "content": text_of(content)}]
    blocks = cast("list[Body]", content)
    return [_assistant(blocks)] if role == "assistant" else _user(blocks)


def _assistant(blocks: list[Body]) -> Message:
    message: Message = {"role": "assistant", "content": ""}
    for block in blocks:
        match block.get("type"):
            case "text":
                message["content"] += block["text"]
            case "tool_use":
                function = {"name": block["name"], "arguments": json.dumps(block.get("input"))}
                call = {"id": block.get("id"), "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
            case "thinking" | "redacted_thinking":
                pass  # known from the turn that the message repeats
            case other:
                raise RequestError(f"content of type {other!r} is not supported")
    return message


def _user(blocks: list[Body]) -> list[Message]:
    messages: list[Message] = []
    for block in blocks:
        if block.get("type") == "tool_result":
            content = text_of(block.get("content"))
            call = block.get("tool_use_id")
            messages.append({"role": "tool", "tool_call_id": call, "content": content})
        elif messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += "\n" + text_of([block])
        else:
            messages.append({"role": "user", "content": text_of([block])})
    return messages


def write(said: Said, request: ChatRequest) -> dict[str, Any]:
    """The answer as one object."""
    blocks: list[dict[str, Any]] = []
    if said.reasoning:
        blocks.append({"type": "thinking", "thinking": said.reasoning, "signature": ""})
    if said.content or not said.tool_calls:
        blocks.append({"type": "text", "text": said.content})
    for call in said.tool_calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": name, "input": json.loads(arguments)}
        )
    return {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": blocks,
        "stop_reason": _stop_reason(said),
        "stop_sequence": said.stopped_by,
        "usage": {"input_tokens": said.num_prompt_tokens, "output_tokens": said.num_tokens},
    }


def _stop_reason(said: Said) -> str:
    if said.tool_calls:
        return "tool_use"
    if said.stopped_by is not None:
        return "stop_sequence"
    return "max_tokens" if said.finish_reason == "length" else "end_turn"


def stream(said: Said, request: ChatRequest) -> Iterator[str]:
    """The answer as server-sent events."""
    whole = write(said, request)
    empty = {**whole, "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message=empty)
    for index, block in enumerate(whole["content"]):
        start, deltas = _pieces(block)
        yield _event("content_block_start", index=index, content_block=start)
        for delta in deltas:
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    ended = {key: whole[key] for key in ("stop_reason", "stop_sequence")}
    yield _event("message_delta", delta=ended, usage=whole["usage"])
    yield _event("message_stop")


def _pieces(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How a block begins, and what is added to it."""
    match block["type"]:
        case "tool_use":
            text = json.dumps(block["input"])
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": text}]
        case "thinking":
            empty = {"type": "thinking", "thinking": "", "signature": ""}
            return empty, [{"type": "thinking_delta", "thinking": block["thinking"]}]
        case _:
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": block["text"]}]


def _event(kind: str, **values: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n"


def error(message: str, kind: str) -> dict[str, Any]:
    """An error as clients of this interface read it."""
    return {"type": "error", "error": {"type": kind, "message": message}}
