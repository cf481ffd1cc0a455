"""A prompt and its response as other models read them."""

from typing import Any

from slime_core.types import Sample

from slime_rewards.turn_end import without_end


def as_text(prompt: str | list[dict[str, Any]]) -> str:
    """A prompt for readers; roles are named where there is more than one message."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return _content(prompt[0])
    return "\n\n".join(f"{message.get('role', 'user')}: {_content(message)}" for message in prompt)


def scored_text(sample: Sample, tokenizer: Any | None) -> str:
    """Prompt and response as a reward model reads them.

    Messages are put into the reward model's own chat template; a prompt that is text already, into
    which a template may have been rendered, is followed by the response as it is. What the
    tokenizer begins every text with is left to it: templates have it as well.
    """
    text = _text(sample, tokenizer)
    begin = getattr(tokenizer, "bos_token", None)
    if tokenizer is None or not begin or not text.startswith(begin):
        return text
    adds_it = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(begin) if adds_it else text


def _text(sample: Sample, tokenizer: Any | None) -> str:
    if isinstance(sample.prompt, str):
        return sample.prompt + sample.response
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return f"{as_text(sample.prompt)}\n\n{sample.response}"
    messages = [*sample.prompt, {"role": "assistant", "content": without_end(sample.response)}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return "".join(map(str, parts))
    return "" if content is None else str(content)
