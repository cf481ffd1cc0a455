"""Ratios of probabilities from their logarithms."""

import torch
from jaxtyping import Float
from torch import Tensor

_LIMIT = 20.0


def ratio_of(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp(log_ratio), with the exponent kept within +-20.

    Without it a log-ratio of 89 is infinite in float32, and a clipped or rejected token, whose
    gradient is 0, would turn the gradient of the whole step into 0 * inf = NaN. Beyond the limit
    nothing carries gradient.
    """
    return torch.exp(log_ratio.clamp(-_LIMIT, _LIMIT))
