"""Quantities of a whole response, from the tokens of it that a rank holds."""

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.batch import LocalTokens
from slime_core.interfaces import Reduce
from slime_core.losses.aggregate import masked


def sample_sums(
    x: Float[Tensor, " tokens"], tokens: LocalTokens, context: Reduce
) -> Float[Tensor, " samples"]:
    """Sum of ``x`` over the trained tokens of each sample.

    One [samples] vector goes through ``context`` instead of whole responses; it carries gradient.
    """
    zeros = torch.zeros(tokens.num_samples, dtype=x.dtype, device=x.device)
    weighted = masked(x, tokens) * tokens.mask.to(x.dtype)
    return context.sum(zeros.index_add(0, tokens.sample, weighted))


def sample_mean(
    x: Float[Tensor, " tokens"], tokens: LocalTokens, context: Reduce
) -> Float[Tensor, " samples"]:
    """Mean of ``x`` over the trained tokens of each sample; 0 where there are none."""
    count = sample_sums(torch.ones_like(x), tokens, context)
    return sample_sums(x, tokens, context) / count.clamp(min=1)


def whole(
    x: Float[Tensor, " tokens"], tokens: LocalTokens, context: Reduce
) -> Float[Tensor, " responses"]:
    """``x`` of all response tokens of the microbatch end to end, on every rank that holds some.

    For functions that want to see whole responses. It carries gradient: the total loss is the sum
    over the ranks of ``context``, so what each of them computes from the same whole vector must be
    divided by ``num_ranks``.
    """
    zeros = torch.zeros(sum(tokens.response_lengths), dtype=x.dtype, device=x.device)
    return context.sum(zeros.index_add(0, tokens.position, x))


def num_ranks(like: Tensor, context: Reduce) -> float:
    """How many ranks ``context`` adds over."""
    return float(context.sum(torch.ones(1, dtype=like.dtype, device=like.device)))


def off_policy_mask(
    drift: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    tokens: LocalTokens,
    delta: float,
    context: Reduce,
) -> Float[Tensor, " tokens"]:
    """0 for tokens of bad advantage in samples that left the old policy, else 1.

        M_t = 0  where  A_t < 0  and  mean_t(log p_old - log p) > delta

    Source: off-policy sequence masking, DeepSeek-V3.2, arXiv:2512.02556, section 3.1.
    """
    mean = sample_mean(drift.detach(), tokens, context)[tokens.sample]
    return 1 - ((advantages < 0) & (mean > delta)).to(drift.dtype)
