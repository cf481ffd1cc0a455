"""What both endpoints make of a request before the model is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from slime_core.data.chat import Message

from slime_sglang.agents.session import RequestError

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A conversation to go on with. How tokens are sampled is the run's business."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    """In the form of the OpenAI interface."""
    may_call: bool = True
    """Whether calls are looked for in the answer; otherwise it is text, whatever it looks like."""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """Entries of SGLang's sampling_params: length and stop strings."""
    stream: bool = False
    log_probs: bool = False
    tells_usage: bool = False
    """Whether a stream ends with an event that has the numbers of tokens and nothing else."""
    model: str = "slime"


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or a list of text parts.

    Raises:
        RequestError: for parts that are not text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RequestError(f"content must be text or a list of parts, got {content!r:.80}")
    texts: list[str] = []
    for part in cast("list[Any]", content):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and "text" in part:
            texts.append(str(cast("Body", part)["text"]))
        else:
            kind = cast("Body", part).get("type") if isinstance(part, Mapping) else part
            raise RequestError(f"content of type {kind!r} is not supported: send text")
    return "".join(texts)


def sequence_of(body: Body, name: str) -> Sequence[Any]:
    """The list under ``name``; empty where there is none."""
    value = body.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RequestError(f"`{name}` must be a list, got {type(value).__name__}")
    return cast("list[Any]", value)


def limits(max_tokens: Any, stop: Any) -> dict[str, Any]:
    """``ChatRequest.extra`` for the most tokens of an answer and strings that end it."""
    extra: dict[str, Any] = {}
    if max_tokens is not None:
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise RequestError(
                "the most tokens of an answer must be a whole number and at least 1, "
                f"got {max_tokens!r:.80}"
            )
        extra["max_new_tokens"] = max_tokens
    if stop:
        extra["stop"] = _strings([stop] if isinstance(stop, str) else stop)
    return extra


def _strings(stop: Any) -> list[str]:
    """Strings that end an answer; an empty one would end it at its first token."""
    strings = cast("list[Any]", stop) if isinstance(stop, list) else [stop]
    for string in strings:
        if not isinstance(string, str) or not string:
            raise RequestError(f"a stop string must be text and not empty, got {string!r:.80}")
    return list(strings)
