"""How long a sequence takes, relative to others."""

from collections.abc import Sequence

_QUADRATIC_AT = 48 * 1024
"""Where attention costs as much as everything else: 12 * hidden size, at hidden size 4096."""


def workload(lengths: Sequence[int]) -> list[float]:
    """Cost of a forward and backward pass in units of one token without attention.

        w(L) = L + L**2 / (12 h)

    From 24 h**2 L multiply-adds in the projections of a layer against 2 h L**2 in causal
    attention (Korthikanti et al., arXiv:2205.05198, appendix A), with h = 4096.
    """
    return [length + length * length / _QUADRATIC_AT for length in lengths]
