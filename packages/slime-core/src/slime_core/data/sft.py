"""Samples for supervised fine-tuning: nothing is generated, the answer is in the data."""

from collections.abc import Mapping, Sequence
from typing import Any

from slime_core.data.chat import Message, Tokenizer, conversation
from slime_core.data.loss_mask import MaskedTokens, is_trained, mask_conversation
from slime_core.errors import DataError
from slime_core.types import Sample, Status


def complete(
    sample: Sample,
    tokenizer: Tokenizer,
    *,
    apply_chat_template: bool,
    template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Fill in tokens, response and mask of a pending sample from its prompt and label.

    A prompt of messages trains on every assistant turn in it, and on the label as one more turn
    when the last message is somebody else's. A prompt of text is followed by the label and the
    end-of-turn token, or becomes a conversation when a chat template is to be applied.

    The response begins at the first trained token.
    """
    prompt = sample.prompt
    if isinstance(prompt, str) and not apply_chat_template:
        masked = _plain(sample, tokenizer)
    else:
        masked = mask_conversation(
            _with_label(conversation(prompt), sample),
            tokenizer,
            tools=sample.metadata.get("tools"),
            template_kwargs=template_kwargs,
        )
    if 1 not in masked.loss_mask:
        raise DataError(
            f"sample {sample.index} has nothing to train on: no assistant turn and no label"
        )
    start = max(masked.loss_mask.index(1), 1)
    sample.tokens = masked.tokens
    sample.loss_mask = masked.loss_mask[start:]
    sample.response_length = len(sample.loss_mask)
    sample.response = tokenizer.decode(masked.tokens[start:], skip_special_tokens=False)
    sample.reward = 0.0
    sample.status = Status.COMPLETED


def has_answer(prompt: str | Sequence[Message], label: Any) -> bool:
    """Whether ``complete`` finds something to train on."""
    if label is not None and (isinstance(prompt, str) or prompt[-1]["role"] != "assistant"):
        return True
    return any(is_trained(message) for message in prompt if isinstance(message, dict))


def _plain(sample: Sample, tokenizer: Tokenizer) -> MaskedTokens:
    if sample.label is None:
        raise DataError(
            f"sample {sample.index}: a prompt of text needs a label to be trained on: "
            "name its key with --label-key"
        )
    prompt = tokenizer.encode(str(sample.prompt), add_special_tokens=False)
    answer = tokenizer.encode(str(sample.label), add_special_tokens=False)
    if tokenizer.eos_token_id is not None:
        answer.append(tokenizer.eos_token_id)
    return MaskedTokens([*prompt, *answer], [0] * len(prompt) + [1] * len(answer))


def _with_label(messages: list[Message], sample: Sample) -> list[Message]:
    if messages[-1]["role"] == "assistant" or sample.label is None:
        return messages
    return [*messages, {"role": "assistant", "content": str(sample.label)}]
