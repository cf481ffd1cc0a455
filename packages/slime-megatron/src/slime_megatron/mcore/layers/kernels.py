"""Attention kernels of packages that may be there: tried once, used if they give the numbers.

Shapes: t rows of all sequences, h query heads, g key/value heads, d head size, e value head size.
"""

import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from slime_megatron.packing.spans import Varlen, causal_spans

logger = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor, Varlen, float], Tensor]
"""Causal attention: queries [t, h, d], keys [t, g, d], values [t, g, e], spans, scale."""

_TRIAL_LENGTHS = (150, 7)
_TRIAL_ERROR = 0.05
"""Relative; bfloat16 itself leaves less than a hundredth."""


class Heads(NamedTuple):
    """What kernels are compiled for."""

    queries: int
    keys: int
    size: int
    value_size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor) -> "Heads":
        """Those of [t, h, d], [t, g, d] and [t, g, e] tensors."""
        return cls(q.shape[1], k.shape[1], q.shape[2], v.shape[2], q.dtype)


def tried(
    package: str, modules: tuple[str, ...], load: Callable[[], Attend], heads: Heads
) -> Attend | None:
    """What ``load`` gives, once it has given the right numbers for such heads on this GPU.

    None where one of ``modules`` is not installed; None and a warning that names ``package`` where
    anything else is wrong.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attend = load()
            error = _trial(attend, heads)
    except ModuleNotFoundError as problem:
        return None if problem.name in modules else _unusable(package, heads, repr(problem))
    except Exception as problem:  # whatever a compiler that meets this machine may raise
        return _unusable(package, heads, repr(problem))
    if not error < _TRIAL_ERROR:
        return _unusable(package, heads, f"a trial was wrong by {error:.1%}")
    return attend


def _unusable(package: str, heads: Heads, why: str) -> None:
    logger.warning("%s is installed but not used for %s: %s", package, heads, why)


def _trial(attend: Attend, heads: Heads) -> float:
    """The largest relative error of output and gradients on two small sequences."""
    device, rows = torch.device("cuda"), sum(_TRIAL_LENGTHS)
    generator = torch.Generator(device).manual_seed(0)

    def draw(count: int, size: int) -> Tensor:
        return torch.randn(rows, count, size, device=device, generator=generator)

    exact = [
        draw(heads.queries, heads.size),
        draw(heads.keys, heads.size),
        draw(heads.keys, heads.value_size),
    ]
    slope = draw(heads.queries, heads.value_size)
    varlen = Varlen.of(causal_spans(_TRIAL_LENGTHS), device)

    def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, varlen, heads.size**-0.5)

    found = _with_gradients(packed, exact, slope, heads.dtype)
    wanted = _with_gradients(_one_by_one, exact, slope, torch.float32)
    errors = [(x - y).norm() / y.norm() for x, y in zip(found, wanted, strict=True)]
    return float(torch.stack(errors).max())


def _with_gradients(
    attend: Callable[..., Tensor], exact: list[Tensor], slope: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [x.to(dtype).requires_grad_() for x in exact]
        out = attend(*leaves)
        found = [out, *torch.autograd.grad(out, leaves, slope.to(dtype))]
    return [x.detach().float() for x in found]


def _one_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention, sequence by sequence."""
    parts: list[Tensor] = []
    for each in zip(*(x.split(_TRIAL_LENGTHS) for x in (q, k, v)), strict=True):
        rows = (x.transpose(0, 1) for x in each)
        out = functional.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)
