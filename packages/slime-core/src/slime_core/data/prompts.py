"""Prompts: rows of files, with their columns found, templated, tokenized and checked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from slime_core.config.data import DataConfig
from slime_core.data.chat import Tokenizer, conversation, render
from slime_core.data.columns import (
    check_unicode,
    input_column,
    metadata_of,
    prompt_text,
    required,
    says_nothing,
    shown,
    system_prompt,
    with_system,
)
from slime_core.data.faults import TOO_LONG, RowError
from slime_core.data.loading import load, read
from slime_core.data.prompt_room import PromptRoom
from slime_core.data.reading import Prompt, find_columns
from slime_core.data.rows import Row, Source, read_rows
from slime_core.data.sft import has_answer
from slime_core.scores import is_answer

__all__ = ["Prompt", "PromptRows", "Tokenizer", "load_prompts", "read_prompts", "read_rows"]

_LABEL_KEYS = ("label", "answer", "solution", "target", "ground_truth", "output")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what, in one file."""

    input: str
    label: str | None


@dataclass(frozen=True, slots=True)
class PromptRows:
    """How a row becomes a prompt; travels to the processes that do it."""

    data: DataConfig
    tokenizer: Tokenizer | None = None
    """None leaves prompts as they are, neither rendered nor tokenized."""
    max_prompt_len: int | None = None
    system: str | None = None
    answered: bool = False
    """Whether rows have to hold what is learnt from them, as for supervised fine-tuning."""
    room: PromptRoom | None = None
    """What engines take, where that is known; ``max_prompt_len`` leaves out first."""

    def columns(self, row: Row) -> Columns:
        """Keys as given; where the row lacks the default one, the usual names are tried."""
        key, label = input_column(row, self.data), self.data.label_key
        if label is None:
            label = next((k for k in _LABEL_KEYS if k in row.values and k != key), None)
        return Columns(key, label)

    def read(self, row: Row, columns: Columns) -> Prompt:
        """The prompt of a row; raises ``RowError``."""
        templated = self.data.apply_chat_template
        text = prompt_text(row, columns.input)
        if says_nothing(text):
            raise RowError("empty", f"{row.place}: the prompt is empty")
        text = with_system(text, self.system, row, templated=templated)
        check_unicode(text, row.place)
        label = None if columns.label is None else required(row, columns.label, "--label-key")
        if self.answered and not has_answer(text, label):
            raise RowError(
                "no_answer",
                f"{row.place}: there is nothing to train on: no turn of an assistant in "
                f"{columns.input!r}, and no label, whose column is named with --label-key",
            )
        if self.answered:
            check_unicode(label, row.place, repr(columns.label))
        prompt = Prompt(text, label, metadata_of(row, self.data))
        if self.data.compared_by is not None and not is_gradable(prompt):
            raise RowError(
                "no_label",
                f"{row.place}: {columns.label or 'label'!r} is {shown(label)}, and "
                f"{self.data.compared_by} compares responses with a label that is text or a number",
            )
        return prompt

    def prepare(self, prompt: Prompt, place: str) -> Prompt:
        """Rendered, and tokenized without special tokens of the tokenizer's own."""
        if self.tokenizer is None:
            return prompt
        text = prompt.prompt
        if self.data.apply_chat_template:
            text = self._rendered(prompt, self.tokenizer, place)
        if not isinstance(text, str):
            return prompt
        check_unicode(text, place)
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        if not tokens:
            raise RowError("empty", f"{place}: the prompt is empty")
        if self.max_prompt_len is not None and len(tokens) > self.max_prompt_len:
            limit = f"longer than {self.max_prompt_len} tokens"
            raise RowError(TOO_LONG, f"{place}: {limit}, it has {len(tokens)}")
        if self.room is not None:
            self.room.require(len(tokens), place)
        return Prompt(text, prompt.label, prompt.metadata, tokens)

    def _rendered(self, prompt: Prompt, tokenizer: Tokenizer, place: str) -> str:
        try:
            return render(
                tokenizer,
                conversation(prompt.prompt),
                tools=prompt.metadata.get("tools"),
                add_generation_prompt=True,
                template_kwargs=self.data.apply_chat_template_kwargs,
            )
        except (TemplateError, TypeError) as error:  # it asks for what a message lacks, or refuses
            why = f"{place}: the chat template does not take the prompt: {error}"
            raise RowError("malformed", why) from error


def is_gradable(prompt: Prompt) -> bool:
    """Whether it comes with a label, or says by itself which reward scores it."""
    return is_answer(prompt.label) or "rm_type" in prompt.metadata


def prompt_rows(
    data: DataConfig,
    tokenizer: Tokenizer | None = None,
    *,
    max_prompt_len: int | None = None,
    answered: bool = False,
    room: PromptRoom | None = None,
) -> PromptRows:
    """How rows become prompts under ``data``."""
    return PromptRows(data, tokenizer, max_prompt_len, system_prompt(data), answered, room)


def columns_found(data: DataConfig, sources: Sequence[str]) -> dict[str, str]:
    """Which columns are read where none are given, by the field that would choose them."""
    looked = find_columns(prompt_rows(data), map(Source, sources)).values()
    each = [columns for columns in looked if isinstance(columns, Columns)]
    names = {
        "input_key": {columns.input for columns in each},
        "label_key": {columns.label for columns in each if columns.label is not None},
    }
    return {key: " or ".join(sorted(found)) for key, found in names.items() if found}


def load_prompts(
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    sources: Sequence[str],
    max_prompt_len: int | None = None,
    room: PromptRoom | None = None,
) -> list[Prompt]:
    """Prompts of all ``sources`` in order, ready to be sampled from.

    With --apply-chat-template they are rendered; whatever is text is tokenized. Prompts of more
    than ``max_prompt_len`` tokens are left out and their number is logged; what does not fit into
    ``room`` cannot be used.

    Raises:
        DataError: naming the first rows that cannot be used, or nothing is left.
    """
    rows = prompt_rows(data, tokenizer, max_prompt_len=max_prompt_len, room=room)
    return load(rows, data, sources=sources)


def read_prompts(data: DataConfig, *, sources: Sequence[str]) -> Iterator[Prompt]:
    """Rows of ``sources`` as prompts, neither rendered nor tokenized."""
    return read(prompt_rows(data), data, sources=sources)
