"""The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): numbers that look independent."""

import numpy as np
from jaxtyping import Int
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""Multiples of it, a step apart, are what is mixed."""
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def mix[Integers: (Int[Tensor, "..."], Int[np.ndarray, "..."])](x: Integers) -> Integers:
    """Each number scrambled, on integers of 64 bits that wrap."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift[Integers: (Tensor, np.ndarray)](x: Integers, bits: int) -> Integers:
    """To the right, with zeros coming in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
