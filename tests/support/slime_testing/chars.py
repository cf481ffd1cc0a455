"""A tokenizer that needs no files: one token per character, jinja chat templates."""

from typing import Any

import jinja2

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}#{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class CharTokenizer:
    """Ids are code points; ``#`` ends a turn."""

    def __init__(self, template: str = CHATML, eos: str | None = "#") -> None:
        self.template = template
        self.eos_token_id = None if eos is None else ord(eos)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return ([0] if add_special_tokens else []) + [ord(c) for c in text]

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        text = "".join(chr(i) for i in token_ids)
        return text.replace("#", "") if skip_special_tokens else text

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        assert kwargs.pop("tokenize") is False
        return jinja2.Template(self.template).render(messages=conversation, **kwargs)
