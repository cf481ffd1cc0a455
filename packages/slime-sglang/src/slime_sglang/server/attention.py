"""Decoding attention on a CPU, all requests of one length in one call.

SGLang's PyTorch backend attends request by request; the calls, not the arithmetic, are half of
what a token costs. Requests whose contexts are equally long share a call here. Each row of it is
computed as it would be alone, to the bit.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_TARGET = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"
_UNUSUAL = ("encoder_lens", "is_cross_attn", "sliding_window_size", "causal")
"""Options of SGLang's function whose requests are left to it."""


def _decode(
    original: Callable[..., Tensor],
    backend: Any,
    query: Tensor,
    output: Tensor,
    *caches: Any,
    **options: Any,
) -> Tensor:
    names = ("k_cache", "v_cache", "req_to_token", "req_pool_indices", "seq_lens", "encoder_lens")
    given = dict(zip(names, caches, strict=False)) | options
    unusual = [given.get(name) for name in _UNUSUAL]
    plain = all(option is None or option is False for option in unusual)
    if not plain or given["k_cache"].dtype != query.dtype:
        return original(backend, query, output, *caches, **options)
    rows: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(given["seq_lens"].tolist()):
        rows[length].append(row)
    for length, members in rows.items():
        at = torch.tensor(members)
        tokens = given["req_to_token"][given["req_pool_indices"][at], :length]
        output[at] = F.scaled_dot_product_attention(
            query[at].unsqueeze(2),
            given["k_cache"][tokens].transpose(1, 2),
            given["v_cache"][tokens].transpose(1, 2),
            scale=given.get("scaling"),
            enable_gqa=given.get("enable_gqa", False),
        ).squeeze(2)
    return output


AROUND: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {f"{_TARGET}._run_sdpa_forward_decode": _decode}
)
"""SGLang 0.5.17's function and the hook around it."""
