"""What TransformerEngine is told, with a stand-in for its layer that attends by definition."""

import os
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from slime_megatron.mcore.layers import packed_cudnn
from slime_megatron.mcore.layers.kernels import Heads
from slime_megatron.packing.spans import Varlen, causal_spans

HEADS = Heads(queries=4, keys=2, size=8, value_size=4, dtype=torch.float64)
LENGTHS = (1032, 8, 16)
told: list[dict[str, Any]] = []


class DotProductAttention:
    """The arguments that TransformerEngine 2.20 takes, by its names."""

    def __init__(self, num_attention_heads: int, kv_channels: tuple[int, int], **rest: Any) -> None:
        assert (num_attention_heads, kv_channels) == (4, (8, 4))
        assert rest.pop("num_gqa_groups") == 2
        assert rest.pop("attention_dropout") == 0.0
        assert (rest.pop("qkv_format"), rest.pop("attn_mask_type")) == ("thd", "padding_causal")
        self.scale = rest.pop("softmax_scale")
        assert not rest

    def __call__(self, q: Any, k: Any, v: Any, **given: Any) -> torch.Tensor:
        chosen = {name: os.environ.get(f"NVTE_{name}_ATTN") for name in ("FLASH", "FUSED")}
        told.append({**given, **chosen, "unfused": os.environ.get("NVTE_UNFUSED_ATTN")})
        outs = []
        for queries, keys, values in zip(
            q.tensor_split(given["cu_seqlens_q"][1:-1].long()),
            *(x.tensor_split(given["cu_seqlens_kv"][1:-1].long()) for x in (k, v)),
            strict=True,
        ):
            first = 0
            if given["attn_mask_type"].endswith("bottom_right"):
                first = len(keys) - len(queries)
            outs.append(softmax_attention(queries, keys, values, self.scale, first))
        return torch.cat(outs).flatten(1)


def softmax_attention(q: Any, k: Any, v: Any, scale: float, first: int) -> torch.Tensor:
    """Of one span whose first query is at place ``first`` of the keys."""
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(first + 1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v)


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    told.clear()
    module = ModuleType("transformer_engine.pytorch")
    module.DotProductAttention = DotProductAttention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformer_engine", ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", module)
    monkeypatch.setenv("NVTE_FLASH_ATTN", "1")
    monkeypatch.delenv("NVTE_UNFUSED_ATTN", raising=False)


@pytest.mark.parametrize(("parts", "part"), [(1, 0), (2, 0), (2, 1)])
def test_whole_sequences_and_parts_of_them_attend_to_what_comes_before(parts: int, part: int):
    spans = causal_spans(LENGTHS, cp_size=parts, cp_rank=part)
    varlen = Varlen.of(spans, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    rows = (sum(LENGTHS) // parts, sum(LENGTHS), sum(LENGTHS))
    q, k, v = (
        torch.randn(n, heads, size, dtype=torch.float64, generator=generator)
        for n, heads, size in zip(rows, (4, 2, 2), (8, 8, 4), strict=True)
    )
    wanted = torch.cat(
        [
            softmax_attention(q[mine], k[keys], v[keys], 0.3, len(keys) - len(mine))
            for mine, keys in zip(spans.queries, spans.keys, strict=True)
        ]
    )
    if varlen.keys is not None:
        k, v = varlen.keys.of(k), varlen.keys.of(v)
    out = packed_cudnn.load(HEADS)(q, k, v, varlen, 0.3)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)


def test_only_cudnn_may_be_chosen_and_the_environment_is_as_before():
    varlen = Varlen.of(causal_spans(LENGTHS), torch.device("cpu"))
    q, k, v = (torch.ones(sum(LENGTHS), n, size) for n, size in ((4, 8), (2, 8), (2, 4)))
    packed_cudnn.load(HEADS)(q, k, v, varlen, 0.3)
    (call,) = told
    assert (call["FLASH"], call["FUSED"], call["unfused"]) == ("0", "1", "0")
    assert (call["max_seqlen_q"], call["max_seqlen_kv"]) == (2048, 2048)
    assert os.environ["NVTE_FLASH_ATTN"] == "1"
    assert "NVTE_UNFUSED_ATTN" not in os.environ


def test_deterministic_mode_does_without():
    torch.use_deterministic_algorithms(True)
    try:
        assert packed_cudnn.packed_cudnn.__wrapped__(HEADS) is None
    finally:
        torch.use_deterministic_algorithms(False)
    assert not told
