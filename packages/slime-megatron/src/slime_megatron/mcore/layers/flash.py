"""FlashAttention-4, where its wheel is installed and the GPU is one that it is for.

Its kernels take packed sequences of any lengths, grouped heads and value heads of another size, on
Hopper and Blackwell. ``flash-attn-4`` comes with SGLang and with ``slime-megatron[flash]``. They
are compiled when first called, for some seconds, and kept on disk if
``FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED`` is 1.
"""

import functools
import importlib

import torch
from torch import Tensor

from slime_megatron.mcore.layers.kernels import Attend, Heads, tried
from slime_megatron.packing.spans import Varlen

_MULTIPLE = 8
"""Of the sizes of heads."""


@functools.cache
def flash_attention(heads: Heads) -> Attend | None:
    """The kernels for such heads on this GPU, once they have given the right numbers; else None."""
    sizes = (heads.size, heads.value_size)
    generation, _ = torch.cuda.get_device_capability()
    if any(size % _MULTIPLE for size in sizes) or not _is_for(generation, *sizes):
        return None
    return tried("flash-attn-4", ("flash_attn", "flash_attn.cute"), _load, heads)


def _is_for(generation: int, size: int, value_size: int) -> bool:
    """Hopper up to 256; Blackwell's data-centre cards up to 128, and DeepSeek's heads."""
    if generation == 9:
        return max(size, value_size) <= 256
    return generation == 10 and (max(size, value_size) <= 128 or (size, value_size) == (192, 128))


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
