"""One number per token in place of the vocabulary: how critics and reward models end."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ValueHead(nn.Module):
    """v = <h, w>, in float32, with w whole on every tensor-parallel rank.

    It starts at zero, so that an untrained critic says 0 for everything instead of noise, whose
    scale would be a further thing to choose; the first step moves the head, the next ones the model
    below it too.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))

    def forward(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, " rows"]:
        """The value of each row."""
        return nn.functional.linear(hidden.float(), self.weight.float())[:, 0]
