"""What the tokens of an answer say: text, reasoning and tool calls."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from slime_core.data.chat import Tokenizer

from slime_sglang.agents.reply import Said
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.answers.transcript import written


def heard(meta: Mapping[str, Any], tokenizer: Tokenizer, *, num_prompt_tokens: int) -> Said:
    """The text of an answer with this ``meta_info``, not taken apart yet."""
    tokens, log_probs = written(meta)
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    reason: Mapping[str, Any] = meta.get("finish_reason") or {}
    matched = reason.get("matched")
    ends = {matched, tokenizer.eos_token_id}
    ended = bool(tokens) and reason.get("type") == "stop" and tokens[-1] in ends
    text = decode(list(tokens[:-1] if ended else tokens))
    return Said(
        text,
        "length" if reason.get("type") == "length" else "stop",
        matched if isinstance(matched, str) else None,
        content=text,
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=len(tokens),
        log_probs=tuple(log_probs),
    )


async def taken_apart(
    said: Said, settings: AgentSettings, tools: Sequence[Any] | None, *, num_calls: int
) -> Said:
    """``said`` with reasoning and calls by SGLang's parsers, where there are such.

    ``num_calls``: those of earlier turns, which calls are numbered after.
    """
    calls_parser = settings.tool_call_parser if tools else None
    if calls_parser is None and settings.reasoning_parser is None:
        return said
    parser = await asyncio.to_thread(import_module, "slime_sglang.server.tool_parser")
    content, reasoning = said.text, ""
    if settings.reasoning_parser is not None:
        reasoning, content = parser.split_reasoning(said.text, settings.reasoning_parser)
    calls: Sequence[dict[str, Any]] = ()
    if calls_parser is not None:
        content, calls = parser.parse(content, tools, calls_parser, first=num_calls)
    return replace(said, content=content, reasoning=reasoning, tool_calls=tuple(calls))
