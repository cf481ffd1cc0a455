"""Memory for tensors that is used again: getting new memory takes longer than reading a file."""

import weakref
from math import prod

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1 << 20
"""Below this, memory is got from PyTorch."""
KEPT = 8
"""How many pieces are kept for later at most."""


class Pool:
    """Gives memory out, and takes it back when the last tensor in it is gone; thread-safe."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor whose values are not set and whose storage is no larger than it."""
        size = prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return torch.empty(shape, dtype=dtype)
        memory = self._take(size)
        part = memory[:size]
        weakref.finalize(part, self._give, memory)
        return torch.from_numpy(part).view(dtype).view(shape)

    def _take(self, size: int) -> np.ndarray:
        for _ in range(len(self._free)):
            try:
                memory = self._free.pop(0)
            except IndexError:  # another thread was faster
                break
            if size <= memory.size <= 2 * size:
                return memory
            self._free.append(memory)
        return np.empty(size, dtype=np.uint8)

    def _give(self, memory: np.ndarray) -> None:
        self._free.append(memory)
        if len(self._free) > KEPT:
            self._free.pop(0)


POOL = Pool()
