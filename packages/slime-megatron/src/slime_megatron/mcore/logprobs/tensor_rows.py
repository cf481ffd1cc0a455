"""The passes over a chunk of logits as tensor operations, for a CPU and for double precision."""

import torch
from jaxtyping import Float
from torch import Tensor

from slime_megatron.iteration.passes import Entropy
from slime_megatron.mcore.logprobs.logits import Slopes, precision
from slime_megatron.mcore.logprobs.scoring import Scoring


class TensorRows:
    """``LogitRows`` on any device, in any precision."""

    def __init__(
        self,
        logits: Float[Tensor, "rows vocab"],
        scratch: Float[Tensor, "rows vocab"],
        scoring: Scoring,
    ) -> None:
        self.dtype = logits.dtype
        self._logits, self._scratch, self._scoring = logits, scratch, scoring
        self._spare = scratch  # until the first sums

    def _scaled(self) -> Tensor:
        """Logits over the temperature, free to be overwritten."""
        keep = self._scoring.top_p < 1
        scaled = self._logits.to(precision(self.dtype), copy=keep)
        return scaled if self._scoring.temperature == 1 else scaled.mul_(self._scoring.scale)

    def sums(self, column: Tensor) -> Tensor:
        """See ``LogitRows``."""
        number = precision(self.dtype)
        if self._logits.shape[-1] == 0:
            none = torch.zeros(4, len(column), dtype=number, device=column.device)
            none[0] = -torch.inf
            return none
        picked = self._logits.gather(-1, column.clamp(min=0)[:, None])[:, 0].to(number)
        picked = torch.where(column >= 0, picked, 0.0)
        scaled = self._scaled()
        largest = scaled.amax(-1)
        shifted = scaled.sub_(largest[:, None])
        powers = torch.exp(shifted, out=self._scratch)
        total = powers.sum(-1)
        if self._scoring.entropy is Entropy.NONE:
            mean = torch.zeros_like(total)
        else:
            mean = shifted.mul_(powers).sum(-1)
        self._spare = shifted
        return torch.stack([largest, total, mean, picked])

    def masses(self, thresholds: Tensor, largest: Tensor) -> Tensor:
        """See ``LogitRows``."""
        powers, nothing = self._scratch, largest.new_zeros(())
        return torch.stack(
            [
                torch.where(self._logits >= t[:, None], powers, nothing, out=self._spare).sum(-1)
                for t in thresholds
            ]
        )

    def gradient(self, column: Tensor, slopes: Slopes) -> Tensor:
        """See ``LogitRows``."""
        log_p = self._scaled().sub_(slopes.normaliser[:, None])
        factor = slopes.drop[:, None]
        if slopes.threshold is not None:
            factor = torch.where(self._logits >= slopes.threshold[:, None], factor, 0.0)
        if slopes.spread is not None:
            surprise = torch.add(log_p, slopes.entropy[:, None], out=self._scratch)
            factor = surprise.mul_(-slopes.spread[:, None]).add_(factor)
        gradient = log_p.exp_().mul_(factor)
        if gradient.shape[-1]:
            rise = torch.where(column >= 0, slopes.rise, 0.0)
            gradient.scatter_add_(1, column.clamp(min=0)[:, None], rise[:, None])
        return gradient.to(self.dtype)
