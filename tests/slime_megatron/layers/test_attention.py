"""Which kernels --attention-backend picks, and that all of them get the same rows."""

from types import SimpleNamespace
from typing import Any

import torch
from slime_testing.ranks import run_on_ranks

LENGTHS = (12, 4, 8)
ORDER = {
    "auto": ["FlashAttention-4"],
    "auto, not installed": ["cuDNN"],
    "auto, TransformerEngine alone": ["packed cuDNN"],
    "auto, TransformerEngine too": ["FlashAttention-4"],
    "flash": ["FlashAttention-4"],
    "flash, not installed": ["FlashAttention-2"],
    "flash, TransformerEngine alone": ["FlashAttention-2"],
    "fused": ["cuDNN"],
    "fused, part of the rows": ["FlashAttention-2"],
    "fused, TransformerEngine too": ["packed cuDNN"],
    "fused, TransformerEngine too, part of the rows": ["packed cuDNN"],
    "unfused": [],
    "local": [],
}


def picked(rank: int, world: int) -> dict[str, tuple[list[str], float]]:
    """What ran on a pretended GPU, and how far its output is from plain attention's."""
    from megatron.core.transformer.enums import AttnBackend
    from slime_megatron.mcore.layers import attention
    from slime_megatron.mcore.layers.packed_input import PackedInput
    from slime_megatron.packing.spans import Padded, causal_spans

    ran: list[str] = []

    def named(name: str, kernel: Any) -> Any:
        def run(*args: Any) -> torch.Tensor:
            if name not in ran:
                ran.append(name)
            return kernel(*args)

        return run

    def packed_plainly(q: Any, k: Any, v: Any, varlen: Any, scale: float) -> torch.Tensor:
        spans = zip(
            q.tensor_split(varlen.cu_queries[1:-1].long()),
            *(x.tensor_split(varlen.cu_keys[1:-1].long()) for x in (k, v)),
            strict=True,
        )
        outs = [softmax_attention(*span, scale) for span in spans]
        return torch.cat(outs)

    spy: Any = attention
    spy._has_fast_kernels = lambda x: True
    spy.flash_attention_2 = named("FlashAttention-2", packed_plainly)
    groups: Any = SimpleNamespace(cp=SimpleNamespace(size=lambda: 1))
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[list[str], float]] = {}
    for case in ORDER:
        ran.clear()
        backend, _, rest = case.partition(", ")
        there = {
            "flash_attention": "not installed" not in rest and "alone" not in rest,
            "packed_cudnn": "TransformerEngine" in rest,
        }
        for package, name in (
            ("flash_attention", "FlashAttention-4"),
            ("packed_cudnn", "packed cuDNN"),
        ):
            kernel = named(name, packed_plainly) if there[package] else None
            setattr(spy, package, lambda heads, kernel=kernel: kernel)
        config = SimpleNamespace(
            window_size=None,
            softmax_type="vanilla",
            kv_channels=8,
            apply_query_key_layer_scaling=False,
            attention_backend=AttnBackend[backend],
        )
        module: Any = attention.CausalAttention(config, 1, pg_collection=groups)
        module._cudnn = named("cuDNN", lambda q, k, v, m=module: m._sdpa(q, k, v, None))
        parts = 2 if "part of the rows" in rest else 1
        spans = causal_spans(LENGTHS, cp_size=parts, cp_rank=parts - 1)
        rows = (sum(LENGTHS) // parts, sum(LENGTHS), sum(LENGTHS))
        q, k, v = (
            torch.randn(n, heads, 8, dtype=torch.float64, generator=generator)
            for n, heads in zip(rows, (4, 2, 2), strict=True)
        )
        packed = PackedInput(positions=torch.zeros(1), spans=spans)
        wanted = module._padded(q, k, v, Padded.of(spans, torch.device("cpu")))
        out = module._packed(q, k, v, packed)
        found[case] = (list(ran), float((out - wanted).abs().max()))
    return found


def softmax_attention(q: Any, k: Any, v: Any, scale: float) -> torch.Tensor:
    """Of one span, written out."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(len(k) - len(q) + 1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v)


def test_the_flag_picks_the_kernels_and_all_attend_alike():
    found = run_on_ranks(1, picked, megatron=True)[0]
    assert {case: ran for case, (ran, _) in found.items()} == ORDER
    assert max(error for _, error in found.values()) < 1e-12, found
