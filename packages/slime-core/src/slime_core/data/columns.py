"""The columns of a row: found, checked, and named in every error with their file and row."""

import json
from pathlib import Path
from typing import Any, TypeGuard, cast

from slime_core.config.data import DataConfig
from slime_core.data.faults import MISSING_KEY, RowError
from slime_core.data.rows import Row

_OF_EVALUATION = ("--input-key", "--label-key", "--tool-key")
"""Flags that evaluation sets have for themselves."""

_INPUT_KEYS = ("input", "prompt", "question", "messages", "problem", "query", "instruction")


def input_column(row: Row, data: DataConfig) -> str:
    """--input-key; where ``row`` lacks the default one, the first usual name that it has."""
    key = data.input_key
    if key == DataConfig().input_key and key not in row.values:
        return next((name for name in _INPUT_KEYS if name in row.values), key)
    return key


def required(row: Row, key: str, flag: str) -> Any:
    """The value of a column that must be there; ``flag`` chooses it."""
    if key not in row.values:
        ours = flag in _OF_EVALUATION
        also = f" (for evaluation --eval-{flag.removeprefix('--')})" if ours else ""
        raise RowError(
            MISSING_KEY,
            f"{row.place}: no key {key!r}; the row has {sorted(row.values)}: choose with "
            f"{flag}{also}",
        )
    return row.values[key]


def optional(row: Row, key: str, kind: type) -> Any:
    """A column that may be missing or empty, and may hold its value as JSON text."""
    value = row.values.get(key)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise RowError(
                "wrong_type", f"{row.place}: {key!r} is not JSON: {shown(value)}"
            ) from error
    if value is not None and not isinstance(value, kind):
        raise RowError(
            "wrong_type", f"{row.place}: {key!r} is {shown(value)}, not a {kind.__name__}"
        )
    return value


def prompt_text(row: Row, key: str) -> str | list[dict[str, Any]]:
    """The prompt in the column --input-key: text, or messages."""
    value = required(row, key, "--input-key")
    if not isinstance(value, str) and not is_conversation(value):
        raise RowError(
            "wrong_type",
            f"{row.place}: {key!r} is {shown(value)}, "
            "neither a string nor a list of messages with a role",
        )
    return value


def check_unicode(text: object, place: str, what: str = "the prompt") -> None:
    """Raise ``RowError`` where JSON escaped half of a character in a text or in messages."""
    try:
        for part in said(text):
            part.encode()
    except UnicodeEncodeError as error:
        raise RowError("not_utf8", f"{place}: {what} is not Unicode: {error}") from error


def said(text: object) -> list[str]:
    """A text itself, or the texts of messages."""
    contents = [m.get("content") for m in text] if is_conversation(text) else [text]
    return [content for content in contents if isinstance(content, str)]


def says_nothing(prompt: str | list[dict[str, Any]]) -> bool:
    """Whether there is nothing in it but what a chat template would put around."""
    if isinstance(prompt, str):
        return not prompt.strip()
    said = (m.get("content") or m.get("tool_calls") for m in prompt if m["role"] != "system")
    return not any(text.strip() if isinstance(text, str) else text for text in said)


def with_system(
    prompt: str | list[dict[str, Any]], system: str | None, row: Row, *, templated: bool
) -> str | list[dict[str, Any]]:
    """The prompt, begun with the system prompt where it has none of its own."""
    if system is None:
        return prompt
    if isinstance(prompt, str):
        if not templated:
            raise RowError(
                "wrong_type",
                f"{row.place}: --system-prompt has no place in a prompt of text: "
                "add --apply-chat-template",
            )
        prompt = [{"role": "user", "content": prompt}]
    if prompt[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": system}, *prompt]


def system_prompt(data: DataConfig) -> str | None:
    """--system-prompt; the text in the file that it names, if it names one."""
    given = data.system_prompt
    if given is None or len(given) > 1000 or "\n" in given:
        return given
    path = Path(given).expanduser()
    return path.read_text(encoding="utf-8").rstrip("\n") if path.is_file() else given


def metadata_of(row: Row, data: DataConfig) -> dict[str, Any]:
    """What travels with every sample of the row; tool definitions among it."""
    metadata = dict(optional(row, data.metadata_key, dict) or {})
    tools = optional(row, data.tool_key, list)
    if tools:
        metadata["tools"] = tools
    return metadata


def is_conversation(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether it is a list of messages, and not an empty one."""
    if not isinstance(value, list) or not value:
        return False
    messages = cast("list[Any]", value)
    return all(isinstance(message, dict) and "role" in message for message in messages)


def shown(value: object) -> str:
    """As an error message shows it: shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
