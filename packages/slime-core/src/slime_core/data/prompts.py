"""Prompts: rows of files, with their columns found, templated, tokenized and checked."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from slime_core.config.data import DataConfig
from slime_core.data.chat import Tokenizer, conversation, render
from slime_core.data.columns import input_column, metadata_of, prompt_text, required
from slime_core.data.rows import Row, numbered_rows, read_rows
from slime_core.errors import DataError

__all__ = ["Prompt", "Tokenizer", "load_prompts", "read_prompts", "read_rows"]

logger = logging.getLogger(__name__)

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
    key, label = input_column(row, data), data.label_key
    if label is None:
        label = next((name for name in _LABEL_KEYS if name in row.values and name != key), None)
    return _Columns(key, label)


def _prompt(row: Row, columns: _Columns, data: DataConfig) -> Prompt:
    text = prompt_text(row, columns.input)
    label = None if columns.label is None else required(row, columns.label, "--label-key")
    return Prompt(text, label, metadata_of(row, data))


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
