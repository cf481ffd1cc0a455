"""What a chat template adds behind a model's turn, and whether it leaves alone what was before.

A model's turn is a span of tokens that is never tokenized again. What follows it (the end of the
turn, the answer of a tool, the beginning of the next turn) is found by rendering the conversation
with a marker where the turn stands, and reading what is behind the marker.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slime_core.data.chat import Message, Tokenizer, render
from slime_core.errors import DataError

THINK_END = "</think>"
_THINK = "<think>"
_MARKER = "SLIMETURN"
_SHOWN = 60


class TemplateDriftError(DataError):
    """A chat template says later something else about what a model was shown or wrote before."""


@dataclass(frozen=True, slots=True)
class Template:
    """A tokenizer with everything that decides how it renders a conversation."""

    tokenizer: Tokenizer
    tools: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def text(self, messages: Sequence[Message], *, begin_turn: bool) -> str:
        """``messages`` as text, with the beginning of the model's turn or without."""
        return render(
            self.tokenizer,
            [readable(message) for message in messages],
            tools=self.tools,
            add_generation_prompt=begin_turn,
            template_kwargs=self.kwargs,
        )

    def ids(self, text: str) -> list[int]:
        """Tokens of ``text``, none added."""
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []


@dataclass(frozen=True, slots=True)
class Continuation:
    """What stands behind a turn of the model, up to the beginning of its next one."""

    text: str
    drift: str | None = None
    """What the template rewrites of the conversation before, with both readings; None: nothing."""


def readable(message: Message) -> Message:
    """A message with the arguments of its tool calls as objects, as chat templates expect them."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_readable_call(call) for call in calls]}


def continuation(
    template: Template,
    before: Sequence[Message],
    turn: Message,
    new: Sequence[Message],
    *,
    written: str | None = None,
) -> Continuation:
    """What the template puts behind ``turn`` when ``new`` messages follow it.

    ``written`` is the text that the model wrote for ``turn``; by default its content. Whether it
    holds reasoning decides with what the template is tried.

    Raises:
        TemplateDriftError: if what follows the turn cannot be told from the turn.
    """
    prompt = template.text(before, begin_turn=True)
    marker = _unused([*before, turn, *new])
    thought = _thought(str(turn.get("content") or "") if written is None else written)
    probe = {**turn, "content": thought + marker}
    probe.pop("reasoning_content", None)
    closed = template.text([*before, probe], begin_turn=False).split(marker)
    full = template.text([*before, probe, *new], begin_turn=True).split(marker)
    if len(closed) != 2 or len(full) != 2 or not full[1].startswith(closed[1]):
        return _by_difference(template, before, turn, new)
    end = _end_of_turn(template, before, marker, probe, closed[1])
    drift = None if full[0] == prompt + thought else _readings(prompt + thought, full[0])
    return Continuation(end + full[1].removeprefix(closed[1]), drift)


def next_tokens(template: Template, found: Continuation, last: int | None) -> list[int]:
    """Ids of a continuation; without its first if the model wrote that itself as its ``last``."""
    ids = template.ids(found.text)
    return ids[1:] if ids and ids[0] == last else ids


def _end_of_turn(
    template: Template, before: Sequence[Message], marker: str, probe: Message, closing: str
) -> str:
    """What closes a turn that is text: of a turn with tool calls, only what is behind them."""
    if not probe.get("tool_calls"):
        return closing
    plain = {"role": probe["role"], "content": probe["content"]}
    parts = template.text([*before, plain], begin_turn=False).split(marker)
    end = parts[1] if len(parts) == 2 else ""
    return end if closing.endswith(end) else ""


def _by_difference(
    template: Template, before: Sequence[Message], turn: Message, new: Sequence[Message]
) -> Continuation:
    """For templates that leave out the text beside a tool call."""
    prompt = template.text(before, begin_turn=True)
    closed = template.text([*before, turn], begin_turn=False)
    full = template.text([*before, turn, *new], begin_turn=True)
    if not full.startswith(closed):
        raise TemplateDriftError(
            "the chat template rewrites a turn when messages follow it: " + _readings(closed, full)
        )
    drift = None if full.startswith(prompt) else _readings(prompt, full)
    return Continuation(_closing(template, closed) + full[len(closed) :], drift)


def _closing(template: Template, closed: str) -> str:
    """The token that ends the turn and what is behind it, at the end of a rendered turn."""
    eos = template.tokenizer.eos_token_id
    marker = "" if eos is None else template.tokenizer.decode([eos], skip_special_tokens=False)
    place = closed.rfind(marker) if marker else -1
    return closed[place:] if place >= 0 and not closed[place:].removeprefix(marker).strip() else ""


def _thought(written: str) -> str:
    """Reasoning for the probe, opened by the model if the model opened the real one."""
    if THINK_END not in written:
        return ""
    return (f"{_THINK}\n" if _THINK in written else "") + f"reasons\n{THINK_END}\n\n"


def _unused(messages: Sequence[Message]) -> str:
    text, number = json.dumps(list(messages), default=str), 0
    while f"{_MARKER}{number}X" in text:
        number += 1
    return f"{_MARKER}{number}X"


def _readable_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except ValueError:
            function["arguments"] = arguments
    return {**call, "function": function}


def _readings(shown: str, later: str) -> str:
    place = next(
        (i for i, (a, b) in enumerate(zip(shown, later, strict=False)) if a != b),
        min(len(shown), len(later)),
    )
    start = max(0, place - _SHOWN // 3)
    return (
        f"the model had {shown[start : start + _SHOWN]!r}, "
        f"which later reads {later[start : start + _SHOWN]!r}"
    )


@dataclass(frozen=True, slots=True)
class Certificate:
    """For each way a conversation may go on: None if the template only appends, else the example.

    The ways are "user after text", "user after reasoning", "tool after text", "tool after
    reasoning" and "tool after tool call".
    """

    examples: Mapping[str, str | None]

    @property
    def is_append_only(self) -> bool:
        """Whether no way rewrites anything."""
        return not any(self.examples.values())

    def require(self, *ways: str) -> None:
        """Refuse ``ways`` that are not append-only; by default any way.

        Raises:
            TemplateDriftError: with the offending examples.
        """
        bad = {way: self.examples[way] for way in ways or self.examples if self.examples[way]}
        if bad:
            found = "; ".join(f"{way}: {example}" for way, example in bad.items())
            raise TemplateDriftError(f"the chat template is not append-only: {found}. {ADVICE}")


ADVICE = (
    "Choose other --apply-chat-template-kwargs; or --template-drift keep, to go on with the tokens "
    "as they were; or --template-drift fork, to go on in a new segment that is rendered anew"
)

_CALL: dict[str, Any] = {
    "id": "functions.look:0",
    "type": "function",
    "function": {"name": "look", "arguments": {"at": "it"}},
}
_USER: Message = {"role": "user", "content": "And then?"}
_RESULT: Message = {
    "role": "tool",
    "name": "look",
    "tool_call_id": "functions.look:0",
    "content": "Seen.",
}
_TEXT, _REASONED = "Fine.", f"{_THINK}\nWell.\n{THINK_END}\n\nFine."
_WAYS: Mapping[str, tuple[Message, str, Message]] = {
    "user after text": ({"role": "assistant", "content": _TEXT}, _TEXT, _USER),
    "user after reasoning": ({"role": "assistant", "content": _REASONED}, _REASONED, _USER),
    "tool after text": ({"role": "assistant", "content": _TEXT}, _TEXT, _RESULT),
    "tool after reasoning": ({"role": "assistant", "content": _REASONED}, _REASONED, _RESULT),
    "tool after tool call": (
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        _TEXT,
        _RESULT,
    ),
}


def certify(
    tokenizer: Tokenizer,
    template_kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Any] | None = None,
) -> Certificate:
    """Try every way in which a conversation goes on behind a turn of the model.

    A way is good if the tokens before the turn, those of the turn and those of the continuation,
    each tokenized alone, are the tokens of the whole conversation.
    """
    template = Template(tokenizer, tools, template_kwargs or {})
    return Certificate({way: _try(template, *case) for way, case in _WAYS.items()})


def _try(template: Template, turn: Message, written: str, new: Message) -> str | None:
    before: list[Message] = [{"role": "user", "content": "Hello."}]
    try:
        found = continuation(template, before, turn, [new], written=written)
    except TemplateDriftError as error:
        return str(error)
    except Exception as error:  # a chat template is code of others: it may refuse a role
        return f"the template fails: {type(error).__name__}: {error}"
    if found.drift is not None or turn.get("tool_calls"):
        return found.drift
    prompt = template.text(before, begin_turn=True)
    if prompt.endswith(f"{_THINK}\n"):
        written = written.removeprefix(f"{_THINK}\n")
    parts = template.ids(prompt) + template.ids(written) + template.ids(found.text)
    whole = template.ids(template.text([*before, turn, new], begin_turn=True))
    if parts == whole:
        return None
    decode = template.tokenizer.decode
    return (
        _readings(
            decode(parts, skip_special_tokens=False), decode(whole, skip_special_tokens=False)
        )
        + f" ({len(parts)} tokens in parts, {len(whole)} as a whole)"
    )
