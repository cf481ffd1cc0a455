"""Whether a tensor holds NaN or infinity: at the speed of memory, without a copy of the tensor."""

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 17
"""Elements at a time, so that what is computed stays in a core's cache."""
_EXPONENTS: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
}
"""Integers of the same size, and the bits that are all set in NaN and infinity alone."""


def all_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite; integers have none such."""
    if not tensor.dtype.is_floating_point:
        return True
    if tensor.dtype not in _EXPONENTS:
        return bool(torch.isfinite(tensor.float()).all())
    integers, exponent = _EXPONENTS[tensor.dtype]
    words = tensor.detach().contiguous().view(-1).view(integers).numpy()
    magnitude = np.iinfo(words.dtype).max
    scratch = np.empty(min(_BLOCK, words.size), dtype=words.dtype)
    for begin in range(0, words.size, _BLOCK):
        block = words[begin : begin + _BLOCK]
        if np.bitwise_and(block, magnitude, out=scratch[: block.size]).max() >= exponent:
            return False
    return True
