"""Normalise advantages over every trained token of a step, across ranks."""

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.interfaces import Reduce

_EPS = 1e-8


def whiten(
    x: Float[Tensor, " tokens"], mask: Float[Tensor, " tokens"], reduce: Reduce
) -> Float[Tensor, " tokens"]:
    """``x`` shifted and scaled to mean 0 and variance 1 over the masked tokens of all ranks.

        (x - mean) / sqrt(var + 1e-8),  var with Bessel's n / (n - 1)

    Ranks exchange (count, sum), then a sum of squares about the mean, in float64: two small
    vectors, no tokens. A rank without tokens still takes part. One token alone becomes 0, and so
    does what is not masked in.
    Source: the numbers of ``distributed_masked_whiten`` upstream, without its cancellation.
    """
    wide = torch.where(mask > 0, x, torch.zeros_like(x)).double()
    weight = mask.double()
    count, total = reduce.sum(torch.stack([weight.sum(), (wide * weight).sum()])).unbind()
    mean = total / count  # looked at only where a token is masked in
    centred = torch.where(mask > 0, wide - mean, 0.0)
    squares = reduce.sum((centred * centred * weight).sum().reshape(1))[0]
    variance = squares / (count - 1).clamp(min=1)
    return (centred * torch.rsqrt(variance + _EPS)).to(x.dtype)
