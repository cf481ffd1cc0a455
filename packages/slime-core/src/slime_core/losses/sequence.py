"""Quantities of a whole response, from the tokens of it that a rank holds."""

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.batch import LossInputs
from slime_core.interfaces import Reduce
from slime_core.losses.aggregate import masked


def sample_mean(
    x: Float[Tensor, " tokens"], inputs: LossInputs, context: Reduce
) -> Float[Tensor, " samples"]:
    """Mean of ``x`` over the trained tokens of each sample; 0 where there are none.

    One [samples] vector goes through ``context`` instead of whole responses; it carries gradient.
    """
    zeros = torch.zeros(inputs.num_samples, dtype=x.dtype, device=x.device)
    total = zeros.index_add(0, inputs.sample, masked(x, inputs) * inputs.mask)
    count = zeros.index_add(0, inputs.sample, inputs.mask.to(x.dtype))
    total, count = context.sum(torch.stack([total, count])).unbind()
    return total / count.clamp(min=1)


def off_policy_mask(
    drift: Float[Tensor, " tokens"], inputs: LossInputs, delta: float, context: Reduce
) -> Float[Tensor, " tokens"]:
    """0 for tokens of bad advantage in samples that left the old policy, else 1.

        M_t = 0  where  A_t < 0  and  mean_t(log p_old - log p) > delta

    Source: off-policy sequence masking, DeepSeek-V3.2, arXiv:2512.02556, section 3.1.
    """
    mean = sample_mean(drift.detach(), inputs, context)[inputs.sample]
    return 1 - ((inputs.advantages < 0) & (mean > delta)).to(drift.dtype)
