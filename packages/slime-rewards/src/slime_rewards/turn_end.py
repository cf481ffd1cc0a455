"""The token that ended a turn: engines return it with the text, and it is no part of the answer."""

_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|user|>",
    "<|observation|>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 -- DeepSeek's own characters
    "[EOS]",
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "<|end|>",
    "<|return|>",
)
"""As the chat templates of published models spell it."""
_MOST = 2
"""Some models end a turn and then the text."""


def without_end(response: str) -> str:
    """``response`` up to the token that ended the model's turn, if it is there."""
    for _ in range(_MOST):
        text = response.rstrip()
        end = next((end for end in _ENDS if text.endswith(end)), None)
        if end is None:
            break
        response = text.removesuffix(end)
    return response
