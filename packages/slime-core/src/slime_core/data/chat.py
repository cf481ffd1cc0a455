"""Conversations and the tokenizer that renders them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

Message = dict[str, Any]


@runtime_checkable
class Tokenizer(Protocol):
    """What slime asks of a tokenizer; those of transformers satisfy it."""

    if TYPE_CHECKING:  # transformers makes it up in __getattr__, where run-time checks are blind

        @property
        def eos_token_id(self) -> int | None:
            """The id that ends a turn."""
            ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``."""
        ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        """Text of ``token_ids``."""
        ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """The conversation as text, when called with ``tokenize=False``."""
        ...


def conversation(prompt: str | Sequence[Message]) -> list[Message]:
    """Messages as they are; a string becomes what a user said."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool,
    template_kwargs: Mapping[str, Any],
) -> str:
    """Text of ``messages`` under the tokenizer's chat template."""
    return tokenizer.apply_chat_template(
        list(messages),
        tools=list(tools) if tools else None,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **template_kwargs,
    )
