"""cuDNN's attention on packed sequences, where TransformerEngine is installed.

PyTorch gives cuDNN rectangles only. TransformerEngine hands it rows end to end, of any lengths,
with grouped heads and value heads of another size, also where a rank has parts of sequences. cuDNN
plans anew for every longest length that it has not seen, so lengths are announced in steps.
"""

import functools
import importlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from slime_megatron.mcore.layers.kernels import Attend, Heads, tried
from slime_megatron.packing.spans import Varlen

_MODULES = ("transformer_engine", "transformer_engine.pytorch", "transformer_engine_torch")
_CUDNN_ALONE = {"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "1", "NVTE_UNFUSED_ATTN": "0"}
_STEP = 1024
"""Longest lengths are announced as multiples of it."""


@functools.cache
def packed_cudnn(heads: Heads) -> Attend | None:
    """The kernels for such heads on this GPU, once they have given the right numbers; else None.

    None in deterministic mode: there they go back in memory that grows with the square of lengths,
    and TransformerEngine refuses long ones.
    """
    if torch.are_deterministic_algorithms_enabled():
        return None
    return tried("TransformerEngine", _MODULES, functools.partial(load, heads), heads)


def load(heads: Heads) -> Attend:
    """The kernels, untried; ImportError and OSError where they are not there or not whole."""
    engine: Any = importlib.import_module("transformer_engine.pytorch")

    @functools.cache
    def layer(scale: float) -> Any:
        return engine.DotProductAttention(
            heads.queries,
            (heads.size, heads.value_size),
            num_gqa_groups=heads.keys,
            attention_dropout=0.0,
            qkv_format="thd",
            attn_mask_type="padding_causal",
            softmax_scale=scale,
        )

    def attend(q: Tensor, k: Tensor, v: Tensor, varlen: Varlen, scale: float) -> Tensor:
        mask = "padding_causal" if varlen.keys is None else "padding_causal_bottom_right"
        with _cudnn_alone():
            out: Tensor = layer(scale)(
                q,
                k,
                v,
                cu_seqlens_q=varlen.cu_queries,
                cu_seqlens_kv=varlen.cu_keys,
                max_seqlen_q=_announced(varlen.max_queries),
                max_seqlen_kv=_announced(varlen.max_keys),
                attn_mask_type=mask,
            )
        return out.view(q.shape[0], heads.queries, heads.value_size)

    return attend


@contextmanager
def _cudnn_alone() -> Generator[None]:
    """Have TransformerEngine choose nothing else; Megatron keeps notes of its own in these."""
    before = {name: os.environ.get(name) for name in _CUDNN_ALONE}
    os.environ.update(_CUDNN_ALONE)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _announced(longest: int) -> int:
    return -(-longest // _STEP) * _STEP
