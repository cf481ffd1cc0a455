"""Root-mean-square norm on PyTorch's kernel, for Megatron's layer specs."""

from typing import Any

import torch


class RMSNorm(torch.nn.RMSNorm):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Megatron's own ``WrappedTorchNorm`` is the same but refuses sequence parallelism. All that takes
    is the mark on the weight, by which Megatron sums its gradient over the tensor-parallel ranks
    that each normalised a part of the sequence.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
