"""What the length of a response adds to its reward."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from slime_core.advantages.groups import Grouping
from slime_core.config.algorithm import ShapingConfig
from slime_core.errors import ConfigError

_CORRECT = 1.0
"""The reward of a correct answer, here as in the metrics."""


def is_active(config: ShapingConfig) -> bool:
    """Whether anything would be added."""
    return config.overlong_buffer_len is not None or config.length_penalty_type != "none"


def penalties(
    raw: Float[Tensor, " samples"],
    lengths: Int[Tensor, " samples"],
    grouping: Grouping,
    config: ShapingConfig,
    max_response_len: int | None,
) -> Float[Tensor, " samples"]:
    """The sum of what ``config`` asks for; 0 for samples that are not valid.

    ``lengths`` are of whole responses, tools' tokens included, which is what
    --rollout-max-response-len limits; a segment has a length of its own.
    """
    total = torch.zeros_like(raw)
    if config.overlong_buffer_len is not None:
        limit, buffer = _limit(max_response_len), config.overlong_buffer_len
        total += config.overlong_penalty_factor * overlong_penalty(lengths, limit, buffer)
    match config.length_penalty_type:
        case "none":
            pass
        case "linear":
            part = linear_penalty(lengths, _limit(max_response_len))
            total += config.length_penalty_coef * part
        case "group":
            part = group_penalty(lengths, raw == _CORRECT, grouping)
            total += config.length_penalty_coef * part
    return torch.where(grouping.valid, total, torch.zeros_like(total))


def overlong_penalty(
    lengths: Int[Tensor, " samples"], limit: int, buffer: int
) -> Float[Tensor, " samples"]:
    """A soft limit: 0, then linearly down to -1 over the last ``buffer`` tokens.

        0                                 |y| <= limit - buffer
        (limit - buffer - |y|) / buffer   in between
        -1                                |y| > limit

    Source: DAPO, arXiv:2503.14476, eq. 13.
    """
    return ((limit - buffer - lengths.double()) / buffer).clamp(-1, 0)


def linear_penalty(lengths: Int[Tensor, " samples"], limit: int) -> Float[Tensor, " samples"]:
    """-|y| / limit: every token costs the same."""
    return -lengths.double() / limit


def group_penalty(
    lengths: Int[Tensor, " samples"], correct: Bool[Tensor, " samples"], grouping: Grouping
) -> Float[Tensor, " samples"]:
    """Favour the short correct answers to a prompt, and never the wrong ones.

        lambda_i = 0.5 - (|y_i| - min |y|) / (max |y| - min |y|)
        lambda_i where the answer is correct, else min(0, lambda_i)

    0 in a group whose lengths are all equal. Samples that are not valid take no part.
    Source: Kimi k1.5, arXiv:2501.12599, section 2.3.3.
    """
    ids, group = torch.unique(grouping.group_ids, return_inverse=True)
    wide, valid = lengths.double(), grouping.valid
    far = wide.new_full((ids.numel(),), torch.inf)
    shortest = far.scatter_reduce(0, group, wide.where(valid, torch.inf), "amin")[group]
    longest = (-far).scatter_reduce(0, group, wide.where(valid, -torch.inf), "amax")[group]
    share = (wide - shortest) / (longest - shortest)
    bonus = torch.where(valid & (longest > shortest), 0.5 - share, 0.0)
    return torch.where(correct, bonus, bonus.clamp(max=0))


def _limit(max_response_len: int | None) -> int:
    if max_response_len is None:
        raise ConfigError(
            "a penalty relative to the longest response allowed needs --rollout-max-response-len"
        )
    return max_response_len
