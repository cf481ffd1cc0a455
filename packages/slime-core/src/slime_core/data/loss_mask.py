"""Which tokens of a conversation the assistant wrote."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.data.chat import Message, Tokenizer, render
from slime_core.errors import DataError

_PROBE = "SLIMETURN0X"
"""A turn that no conversation holds, to see what a template puts behind one."""

Shown = Callable[[Sequence[Message], bool], str]
"""(messages, whether the assistant's turn begins behind them) -> text."""


@dataclass(frozen=True, slots=True)
class MaskedTokens:
    """Token ids of a whole conversation and, for each, whether it is trained on."""

    tokens: list[int]
    loss_mask: list[int]


def mask_conversation(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    last_only: bool = False,
    as_rendered: bool = False,
) -> MaskedTokens:
    """Tokens of ``messages``, with the assistant's turns marked, or only a turn that ends them.

    They end with the last turn, or with ``as_rendered`` where the template's text ends.

    A turn is what the model would have to write: from the end of the generation prompt through
    the token that ends the turn, which is added where the template leaves the last turn open. Text
    and turns are tokenized apart, as they are at generation.
    Turns with a false ``step_loss_mask`` or ``train`` are not marked.

    Raises:
        DataError: where rendering the messages before a turn does not give the beginning of the
            whole conversation: such a template rewrites what was already said, and no token of
            it has one meaning.
    """

    def shown(some: Sequence[Message], begin_turn: bool) -> str:
        return render(
            tokenizer,
            some,
            tools=tools,
            add_generation_prompt=begin_turn,
            template_kwargs=template_kwargs or {},
        )

    text = shown(messages, False)
    tokens: list[int] = []
    mask: list[int] = []
    end = 0
    for position, message in enumerate(messages):
        if message["role"] != "assistant" or (last_only and position + 1 < len(messages)):
            continue
        before = shown(messages[:position], True)
        if len(before) < end or not text.startswith(before):
            raise DataError(_not_append_only(messages, position, before, text))
        stop, closed = _turn_end(messages, position, text, len(before), tokenizer, shown)
        trained = int(is_trained(message))
        for piece, flag in ((text[end : len(before)], 0), (text[len(before) : stop], trained)):
            ids = tokenizer.encode(piece, add_special_tokens=False) if piece else []
            tokens += ids
            mask += [flag] * len(ids)
        if not (closed or as_rendered) and tokenizer.eos_token_id is not None:
            tokens.append(tokenizer.eos_token_id)
            mask.append(trained)
        end = stop
    behind = tokenizer.encode(text[end:], add_special_tokens=False) if as_rendered else []
    return MaskedTokens(tokens + behind, mask + [0] * len(behind))


def is_trained(message: Message) -> bool:
    """Whether it is a turn of the assistant's that nobody has switched off."""
    switch = message.get("step_loss_mask", message.get("train", True))
    return message["role"] == "assistant" and bool(switch)


def _turn_end(
    messages: Sequence[Message],
    position: int,
    text: str,
    start: int,
    tokenizer: Tokenizer,
    shown: Shown,
) -> tuple[int, bool]:
    """Just behind the token that ends the turn; where none does, the end of the last turn's text.

    Also whether one does. It is the tokenizer's, or else what the template closes turns with: a
    base model's tokenizer may end texts with another token than its template ends turns with.
    """
    eos = tokenizer.eos_token_id
    own = "" if eos is None else tokenizer.decode([eos], skip_special_tokens=False)
    if own and (found := text.find(own, start)) >= 0:
        return found + len(own), True
    closing = _closing(messages[:position], shown)
    if closing and (found := text.find(closing, start)) >= 0:
        return found + len(closing), True
    if position + 1 == len(messages):
        return len(text), False
    raise DataError(
        f"message {position} of a conversation is not closed by the end-of-turn token {own!r}, "
        f"so where it ends is unknown: {_excerpt(text, start)}"
    )


def _closing(before: Sequence[Message], shown: Shown) -> str:
    """What the template puts behind a turn, blanks aside; nothing where that cannot be told."""
    probe: Message = {"role": "assistant", "content": _PROBE}
    parts = shown([*before, probe], False).split(_PROBE)
    return parts[1].strip() if len(parts) == 2 else ""


def _not_append_only(messages: Sequence[Message], position: int, before: str, text: str) -> str:
    place = next(
        (i for i, (a, b) in enumerate(zip(before, text, strict=False)) if a != b),
        min(len(before), len(text)),
    )
    return (
        f"the chat template is not append-only: the {position} messages before turn {position} of "
        f"a conversation of {len(messages)} render to {_excerpt(before, place)}, but in the whole "
        f"conversation that is {_excerpt(text, place)}. Cut the conversation into single turns, or "
        "choose other --apply-chat-template-kwargs"
    )


def _excerpt(text: str, place: int) -> str:
    return repr(text[max(0, place - 20) : place + 40])
