"""Prompts: rows of files, with their columns found, templated, tokenized and checked."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from slime_core.config.data import DataConfig
from slime_core.data.chat import Tokenizer, conversation, render
from slime_core.data.rows import Row, numbered_rows, read_rows
from slime_core.errors import DataError

__all__ = ["Prompt", "Tokenizer", "load_prompts", "read_prompts", "read_rows"]

logger = logging.getLogger(__name__)

_INPUT_KEYS = ("input", "prompt", "question", "messages", "problem", "query", "instruction")
_LABEL_KEYS = ("label", "answer", "solution", "target", "ground_truth", "output")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt file; read once, copied into samples."""

    prompt: str | list[dict[str, Any]]
    """Text for the model, or messages where no chat template was applied."""
    label: Any = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    tokens: tuple[int, ...] | None = None
    """Ids of a prompt that is text."""


def load_prompts(
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    sources: Sequence[str],
    max_prompt_len: int | None = None,
) -> list[Prompt]:
    """Prompts of all ``sources`` in order, ready to be sampled from.

    With --apply-chat-template they are rendered; whatever is text is tokenized, without special
    tokens of the tokenizer's own. Prompts of more than ``max_prompt_len`` tokens are left out and
    their number is logged.
    """
    prompts: list[Prompt] = []
    num_read = 0
    for prompt in read_prompts(data, sources=sources):
        num_read += 1
        prepared = _prepare(prompt, data, tokenizer)
        tokens = prepared.tokens
        if max_prompt_len is None or tokens is None or len(tokens) <= max_prompt_len:
            prompts.append(prepared)
    if num_read > len(prompts):
        logger.warning(
            "left out %d of %d prompts longer than %s tokens",
            num_read - len(prompts),
            num_read,
            max_prompt_len,
        )
    if not prompts:
        reason = f"all {num_read} are longer than {max_prompt_len} tokens: raise the limit"
        raise DataError(
            f"no prompts in {', '.join(sources)}: " + (reason if num_read else "there are no rows")
        )
    return prompts


def read_prompts(data: DataConfig, *, sources: Sequence[str]) -> Iterator[Prompt]:
    """Rows of ``sources`` as prompts, neither rendered nor tokenized."""
    for source in sources:
        columns: _Columns | None = None
        for row in numbered_rows(source):
            if columns is None:
                columns = _find_columns(row, data)
                logger.info("%s: prompt %r, label %r", source, columns.input, columns.label)
            yield _prompt(row, columns, data)


@dataclass(frozen=True, slots=True)
class _Columns:
    input: str
    label: str | None


def _find_columns(row: Row, data: DataConfig) -> _Columns:
    """Keys as configured; where the first row lacks the default one, the usual names are tried."""
    default = DataConfig()
    key = data.input_key
    if key == default.input_key and key not in row.values:
        key = next((name for name in _INPUT_KEYS if name in row.values), key)
    label = data.label_key
    if label is None:
        label = next((name for name in _LABEL_KEYS if name in row.values and name != key), None)
    return _Columns(key, label)


def _prompt(row: Row, columns: _Columns, data: DataConfig) -> Prompt:
    value = _require(row, columns.input, "--input-key")
    if not isinstance(value, str) and not _is_conversation(value):
        raise DataError(
            f"{row.place}: {columns.input!r} is {_shown(value)}, "
            "neither a string nor a list of messages with a role"
        )
    label = None if columns.label is None else _require(row, columns.label, "--label-key")
    metadata = dict(_parsed(row, data.metadata_key, dict) or {})
    tools = _parsed(row, data.tool_key, list)
    if tools:
        metadata["tools"] = tools
    return Prompt(cast("str | list[dict[str, Any]]", value), label, metadata)


def _require(row: Row, key: str, flag: str) -> Any:
    if key not in row.values:
        raise DataError(
            f"{row.place}: no key {key!r}; the row has {sorted(row.values)}: choose with {flag}"
        )
    return row.values[key]


def _parsed(row: Row, key: str, kind: type) -> Any:
    """An optional column, which may hold its value as JSON text."""
    value = row.values.get(key)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{row.place}: {key!r} is not JSON: {_shown(value)}") from error
    if value is not None and not isinstance(value, kind):
        raise DataError(f"{row.place}: {key!r} is {_shown(value)}, not a {kind.__name__}")
    return value


def _is_conversation(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    messages = cast("list[Any]", value)
    return all(isinstance(message, dict) and "role" in message for message in messages)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _prepare(prompt: Prompt, data: DataConfig, tokenizer: Tokenizer) -> Prompt:
    text = prompt.prompt
    if data.apply_chat_template:
        text = render(
            tokenizer,
            conversation(text),
            tools=prompt.metadata.get("tools"),
            add_generation_prompt=True,
            template_kwargs=data.apply_chat_template_kwargs,
        )
    if not isinstance(text, str):
        return prompt
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
    return Prompt(text, prompt.label, prompt.metadata, tokens)
