"""The sum over ranks where there is one rank."""

from torch import Tensor


class LocalReduce:
    """One rank: nothing to add."""

    def sum(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x
