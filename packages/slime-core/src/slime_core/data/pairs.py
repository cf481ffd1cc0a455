"""Preferences: rows that hold a chosen and a rejected response to one prompt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.config.algorithm import PreferenceConfig
from slime_core.config.data import DataConfig
from slime_core.data.chat import Message, Tokenizer, conversation
from slime_core.data.columns import (
    check_unicode,
    input_column,
    is_conversation,
    metadata_of,
    prompt_text,
    required,
    shown,
    system_prompt,
    with_system,
)
from slime_core.data.faults import RowError
from slime_core.data.loading import read
from slime_core.data.loss_mask import MaskedTokens, mask_conversation
from slime_core.data.reading import Prompt
from slime_core.data.rows import Row
from slime_core.errors import DataError
from slime_core.types import Sample, SampleGroup, Status

Text = str | list[Message]


@dataclass(frozen=True, slots=True)
class Pair:
    """The responses of one row; travels as the label of its prompt."""

    chosen: Text
    """Text, or the assistant's message alone in a list."""
    rejected: Text
    place: str
    keys: tuple[str, str]
    """Columns of the two."""


@dataclass(frozen=True, slots=True)
class PairRows:
    """How a row becomes a prompt whose label is a ``Pair``.

    The prompt is the column --input-key. Where --chosen-key and --rejected-key hold conversations
    of more than the response, these say what was asked, and must say the same.
    """

    data: DataConfig
    preference: PreferenceConfig
    system: str | None = None

    def columns(self, row: Row) -> str:
        """The column of the prompt."""
        return input_column(row, self.data)

    def read(self, row: Row, columns: str) -> Prompt:
        """Both responses to one prompt; raises ``RowError`` naming the key."""
        prompt = _prompt(row, columns, self.data, self.preference)
        templated = self.data.apply_chat_template
        text = with_system(prompt.prompt, self.system, row, templated=templated)
        return Prompt(text, prompt.label, prompt.metadata)

    def prepare(self, prompt: Prompt, place: str) -> Prompt:
        """As it is: pairs are tokenized with their responses."""
        return prompt


def pair_rows(data: DataConfig, preference: PreferenceConfig) -> PairRows:
    """How rows become pairs under these sections."""
    return PairRows(data, preference, system_prompt(data))


def read_pairs(
    data: DataConfig, preference: PreferenceConfig, *, sources: Sequence[str]
) -> Iterator[Prompt]:
    """Rows of ``sources`` as prompts whose labels are ``Pair``s.

    Raises:
        DataError: naming file, row and key of what is missing or has the wrong form.
    """
    return read(pair_rows(data, preference), data, sources=sources)


def complete_pair(
    group: SampleGroup,
    tokenizer: Tokenizer,
    *,
    apply_chat_template: bool,
    template_kwargs: Mapping[str, Any] | None = None,
    scored: bool = False,
) -> SampleGroup:
    """The two pending samples of a row, answered: first the chosen response, then the rejected.

    Rewards are 1 and 0. Both have the rollout id of their group: a step counts pairs, and a
    microbatch never parts them. A prompt of text is followed by the response and the end-of-turn
    token, unless a chat template is to be applied or the row holds messages. ``scored``: a reward
    model reads them, and its score is at the last token of what the template renders.
    """
    chosen, rejected = group.samples
    pair: Pair = chosen.label
    sides = ((chosen, pair.chosen, 1.0), (rejected, pair.rejected, 0.0))
    for (sample, response, reward), key in zip(sides, pair.keys, strict=True):
        try:
            plain = None if apply_chat_template else _plain(sample, response, tokenizer)
            masked = plain or _templated(sample, response, tokenizer, template_kwargs, scored)
        except DataError as error:
            raise DataError(f"{pair.place}, key {key!r}: {error}") from error
        _fill(sample, masked, tokenizer, f"{pair.place}, key {key!r}")
        sample.reward = reward
        sample.rollout_id = group.group_index
    return group


def _plain(sample: Sample, response: Text, tokenizer: Tokenizer) -> MaskedTokens | None:
    """A prompt of text, the response and the end-of-turn token; None where one holds messages."""
    prompt = sample.prompt
    if not (isinstance(prompt, str) and isinstance(response, str)):
        return None
    asked = tokenizer.encode(prompt, add_special_tokens=False)
    answer = tokenizer.encode(response, add_special_tokens=False)
    if tokenizer.eos_token_id is not None:
        answer.append(tokenizer.eos_token_id)
    return MaskedTokens([*asked, *answer], [0] * len(asked) + [1] * len(answer))


def _templated(
    sample: Sample,
    response: Text,
    tokenizer: Tokenizer,
    template_kwargs: Mapping[str, Any] | None,
    scored: bool,
) -> MaskedTokens:
    turn = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
    return mask_conversation(
        [*conversation(sample.prompt), *turn],
        tokenizer,
        tools=sample.metadata.get("tools"),
        template_kwargs=template_kwargs,
        last_only=True,
        as_rendered=scored,
    )


def _fill(sample: Sample, masked: MaskedTokens, tokenizer: Tokenizer, place: str) -> None:
    if 1 not in masked.loss_mask:
        raise DataError(f"{place}: the response is empty, there is nothing to compare")
    start = masked.loss_mask.index(1)
    if not start:
        raise DataError(f"{place}: the prompt is empty, and nothing predicts the first token")
    sample.tokens = masked.tokens
    sample.loss_mask = masked.loss_mask[start:]
    sample.response_length = len(sample.loss_mask)
    sample.response = tokenizer.decode(masked.tokens[start:], skip_special_tokens=False)
    sample.label = None
    sample.status = Status.COMPLETED


def _prompt(row: Row, key: str, data: DataConfig, preference: PreferenceConfig) -> Prompt:
    keys = (preference.chosen_key, preference.rejected_key)
    chosen = _side(row, keys[0], "--chosen-key")
    rejected = _side(row, keys[1], "--rejected-key")
    asked = [side[:-1] if isinstance(side, list) else [] for side in (chosen, rejected)]
    if asked[0] != asked[1]:
        raise RowError(
            "malformed",
            f"{row.place}: {keys[0]!r} and {keys[1]!r} answer different conversations; a pair is "
            "two responses to one prompt, and only their last messages may differ",
        )
    prompt: Text = asked[0] or prompt_text(row, key)
    check_unicode(prompt, row.place)
    label = Pair(_last(chosen), _last(rejected), row.place, keys)
    return Prompt(prompt, label, metadata_of(row, data))


def _last(side: Text) -> Text:
    return side if isinstance(side, str) else side[-1:]


def _side(row: Row, key: str, flag: str) -> Text:
    value = required(row, key, flag)
    check_unicode(value, row.place, repr(key))
    if isinstance(value, str):
        return value
    if not is_conversation(value) or value[-1]["role"] != "assistant":
        raise RowError(
            "wrong_type",
            f"{row.place}: {key!r} is {shown(value)}, neither a string nor a list of messages "
            "whose last one is the assistant's",
        )
    return value
