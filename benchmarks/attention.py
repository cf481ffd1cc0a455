"""Attention of one layer, forward and backward, on packed sequences: every kernel that is there.

Heads of Qwen3-4B (32 queries, 8 keys, 128 numbers). Sequences of one length, and lengths drawn
log-normally and anew for every repeat, as microbatches of rollouts have them: shapes that a kernel
has to be planned for cost one layer here what they cost all layers of a model. The kernels take
turns on the same sequences. The CPU has one way to attend, and takes float32 and few tokens.
"""

import argparse
import logging
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from measuring import machine_name, on_gpu, wait
from record import record
from slime_megatron.mcore.startup import bootstrap
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KEY_HEADS, SIZE = 32, 8, 128
SCALE = SIZE**-0.5
SIGMA = 1.0

Layer = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""Queries, keys, values [rows, heads, size] and the packed input."""


def main() -> None:
    """Measure and record."""
    gpu = on_gpu()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=65_536 if gpu else 1_024)
    parser.add_argument("--length", type=int, default=4_096 if gpu else 128)
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bootstrap.load()
    logging.basicConfig(level=logging.WARNING, force=True)  # why a kernel is not used
    layers = present(torch.bfloat16) if gpu else {"rectangles": rectangles}
    draw = random.Random(options.seed)
    equal = [[options.length] * (options.tokens // options.length)] * options.repeats
    uneven = [lengths(draw, options) for _ in range(options.repeats)]
    rows: list[dict[str, Any]] = []
    for kind, batches in (("equal", equal), ("uneven", uneven)):
        for name, rate in rates(layers, batches).items():
            rows.append(row(f"{name}, {kind} lengths", rate))
    record(f"attention-{machine_name()}", vars(options), rows)


def row(what: str, value: float) -> dict[str, Any]:
    """One result."""
    unit = "TFLOP/s" if on_gpu() else "GFLOP/s"
    model = "Qwen3-4B, one layer"
    return {
        "what": what, "model": model, "value": value, "unit": unit, "target": None, "met": None
    }  # fmt: skip


def lengths(draw: random.Random, options: argparse.Namespace) -> list[int]:
    """Log-normal around half of ``--length``, at most four times it, ``--tokens`` together."""
    found: list[int] = []
    while (left := options.tokens - sum(found)) > 0:
        one = int(options.length / 2 * draw.lognormvariate(0, SIGMA))
        found.append(min(max(one, 1), 4 * options.length, left))
    return found


def present(dtype: torch.dtype) -> dict[str, Layer]:
    """The kernels that work here."""
    from slime_megatron.mcore.layers.attention import flash_attention_2
    from slime_megatron.mcore.layers.flash import flash_attention
    from slime_megatron.mcore.layers.kernels import Attend, Heads
    from slime_megatron.mcore.layers.packed_cudnn import packed_cudnn

    def packed(kernel: Attend) -> Layer:
        return lambda q, k, v, given: kernel(q, k, v, given.varlen, SCALE)

    heads = Heads(HEADS, KEY_HEADS, SIZE, SIZE, dtype)
    found: dict[str, Layer] = {
        "cuDNN, rectangles": rectangles,
        "FlashAttention-2": packed(flash_attention_2),
    }
    for name, kernel in (
        ("FlashAttention-4", flash_attention(heads)),
        ("cuDNN, packed", packed_cudnn(heads)),
    ):
        if kernel is not None:
            found[name] = packed(kernel)
    return found


def rectangles(q: Tensor, k: Tensor, v: Tensor, given: Any) -> Tensor:
    """PyTorch's attention on sequences of like length."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=SCALE, enable_gqa=True
        )

    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH], set_priority=True):
        out: Tensor = given.blocks.attend(q, k, v, attend)
    return out


def rates(layers: dict[str, Layer], batches: Sequence[Sequence[int]]) -> dict[str, float]:
    """The median of each; the first half of the batches warms up."""
    found: dict[str, list[float]] = {name: [] for name in layers}
    for turn, batch in enumerate(batches):
        outs: dict[str, Tensor] = {}
        for name, layer in layers.items():
            seconds, outs[name] = timed(layer, batch)
            if turn >= len(batches) // 2:
                found[name].append(operations(batch) / seconds)
        compare(outs)
    unit = 1e12 if on_gpu() else 1e9
    return {name: statistics.median(each) / unit for name, each in found.items()}


def operations(batch: Sequence[int]) -> float:
    """Of causal attention, forward (two products) and backward (five)."""
    return 7 * HEADS * SIZE * sum(length**2 for length in batch)


def timed(layer: Layer, batch: Sequence[int]) -> tuple[float, Tensor]:
    """Seconds, with what is prepared for a microbatch left out, and the output."""
    from slime_megatron.mcore.layers.packed_input import PackedInput
    from slime_megatron.packing.spans import causal_spans

    device = torch.device("cuda" if on_gpu() else "cpu")
    dtype = torch.bfloat16 if on_gpu() else torch.float32
    generator = torch.Generator(device).manual_seed(1)
    made: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
    q, k, v = (
        torch.randn(sum(batch), heads, SIZE, **made).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    slope = torch.randn(sum(batch), HEADS, SIZE, **made)
    given = PackedInput(positions=torch.zeros(1, device=device), spans=causal_spans(batch))
    _ = given.varlen, given.blocks
    wait()
    begin = time.perf_counter()
    out = layer(q, k, v, given)
    torch.autograd.grad(out, (q, k, v), slope)
    wait()
    return time.perf_counter() - begin, out.detach()


def compare(outs: dict[str, Tensor]) -> None:
    """All agree, or there is nothing to time."""
    first, *others = outs.items()
    for name, out in others:
        error = float((out.float() - first[1].float()).norm() / first[1].float().norm())
        assert error < 0.02, f"{name} differs from {first[0]} by {error}"


if __name__ == "__main__":
    main()
