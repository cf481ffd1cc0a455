"""How a model writes tool calls and reasoning, read by SGLang's own parsers."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any
from uuid import uuid4

from sglang.srt.entrypoints.openai.protocol import Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.parser.reasoning_parser import ReasoningParser
from slime_core.errors import ConfigError


def parse(
    text: str, tools: Sequence[Any], parser: str, *, first: int = 0
) -> tuple[str, list[dict[str, Any]]]:
    """The text beside tool calls, and the calls in the form of the OpenAI interface.

    What looks like a call and cannot be read stays text. ``first`` numbers the calls of parsers
    whose chat templates count them through the conversation (Kimi K2).

    Raises:
        ConfigError: SGLang has no such parser.
    """
    known = FunctionCallParser.ToolCallParserEnum
    if parser not in known:
        raise ConfigError(
            f"--sglang-tool-call-parser {parser} names no parser; known are {', '.join(known)}"
        )
    offered = _tools(json.dumps(list(tools)))
    rest, found = FunctionCallParser(list(offered), parser).parse_non_stream(text)
    calls: list[dict[str, Any]] = []
    for item in found:
        if not item.name or not _is_object(item.parameters):
            return text, []
        number = first + len(calls)
        kimi = parser == "kimi_k2"
        name = f"functions.{item.name}:{number}" if kimi else f"call_{uuid4().hex[:24]}"
        function = {"name": item.name, "arguments": item.parameters or "{}"}
        calls.append({"id": name, "type": "function", "function": function})
    return (rest, calls) if calls else (text, [])


def split_reasoning(text: str, parser: str) -> tuple[str, str]:
    """Reasoning, and what was said.

    Raises:
        ConfigError: SGLang has no such parser.
    """
    known = ReasoningParser.DetectorMap
    if parser not in known:
        raise ConfigError(
            f"--sglang-reasoning-parser {parser} names no parser; known are {', '.join(known)}"
        )
    opened_by_prompt = "</think>" in text and "<think>" not in text
    reader = ReasoningParser(parser, stream_reasoning=False, force_reasoning=opened_by_prompt)
    reasoning, said = reader.parse_non_stream(text)
    return reasoning or "", said or ""


@cache
def _tools(text: str) -> tuple[Tool, ...]:
    return tuple(Tool.model_validate(tool) for tool in json.loads(text))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text or "{}"), dict)
    except ValueError:
        return False
