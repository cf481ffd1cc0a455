"""FlashAttention-4, where its wheel is installed and the GPU is one that it is for.

Its kernels take packed sequences of any lengths, grouped heads and value heads of another size, on
Hopper and Blackwell. ``flash-attn-4`` comes with SGLang and with ``slime-megatron[flash]``. They
are compiled when first called, for some seconds, and kept on disk if
``FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED`` is 1.
"""

import functools
import importlib
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
"""Causal attention: queries, keys, values [rows, heads, d], their spans and the scale."""

_MULTIPLE = 8
"""Of the sizes of heads."""
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
        """Those of [rows, heads, size] tensors."""
        return cls(q.shape[1], k.shape[1], q.shape[2], v.shape[2], q.dtype)


@functools.cache
def flash_attention(heads: Heads) -> Attend | None:
    """The kernels for such heads on this GPU, once they have given the right numbers; else None."""
    sizes = (heads.size, heads.value_size)
    generation, _ = torch.cuda.get_device_capability()
    if any(size % _MULTIPLE for size in sizes) or not _is_for(generation, *sizes):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attend = _load()
            error = _trial(attend, heads)
    except ModuleNotFoundError as problem:
        if problem.name in ("flash_attn", "flash_attn.cute"):
            return None
        return _unusable(heads, repr(problem))
    except Exception as problem:  # whatever a compiler that meets this machine may raise
        return _unusable(heads, repr(problem))
    if not error < _TRIAL_ERROR:
        return _unusable(heads, f"a trial was wrong by {error:.1%}")
    return attend


def _is_for(generation: int, size: int, value_size: int) -> bool:
    """Hopper up to 256; Blackwell's data-centre cards up to 128, and DeepSeek's heads."""
    if generation == 9:
        return max(size, value_size) <= 256
    return generation == 10 and (max(size, value_size) <= 128 or (size, value_size) == (192, 128))


def _unusable(heads: Heads, why: str) -> None:
    logger.warning("flash-attn-4 is installed but not used for %s: %s", heads, why)


def _load() -> Attend:
    kernel = importlib.import_module("flash_attn.cute").flash_attn_varlen_func

    def attend(q: Tensor, k: Tensor, v: Tensor, varlen: Varlen, scale: float) -> Tensor:
        out, _ = kernel(
            q,
            k,
            v,
            cu_seqlens_q=varlen.cu_queries,
            cu_seqlens_k=varlen.cu_keys,
            max_seqlen_q=varlen.max_queries,
            max_seqlen_k=varlen.max_keys,
            softmax_scale=scale,
            causal=True,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return out

    return attend


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
