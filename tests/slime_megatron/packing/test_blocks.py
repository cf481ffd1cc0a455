import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_megatron.packing.blocks import MIN_STEP, STEPS, Blocks
from torch.nn import functional

HEADS, KV_HEADS, SIZE = 4, 2, 3


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def one_by_one(q, k, v, lengths):
    parts = []
    for rows in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        parts.append(causal(*(x.transpose(0, 1)[None] for x in rows))[0].transpose(0, 1))
    return torch.cat(parts)


def inputs(num_rows: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(num_rows, heads, SIZE, dtype=torch.float64, generator=generator)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def gradients(attend, tensors):
    leaves = [x.clone().requires_grad_() for x in tensors]
    out = attend(*leaves)
    weights = torch.arange(out.numel(), dtype=torch.float64).reshape(out.shape).cos()
    return out.detach(), torch.autograd.grad((out * weights).sum(), leaves)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9))
def test_values_and_gradients_are_those_of_each_sequence_alone(lengths):
    blocks = Blocks.of(lengths, torch.device("cpu"))
    tensors = inputs(sum(lengths))
    out, grads = gradients(lambda q, k, v: blocks.attend(q, k, v, causal), tensors)
    wanted, expected = gradients(lambda q, k, v: one_by_one(q, k, v, lengths), tensors)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    for found, right in zip(grads, expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


def test_sequences_of_one_length_are_not_moved():
    assert Blocks.of([48] * 3, torch.device("cpu")) == Blocks(((3, 48),))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40))
def test_what_is_padded_on_is_bounded(lengths):
    blocks = Blocks.of(lengths, torch.device("cpu"))
    places = sum(count * width for count, width in blocks.shapes)
    assert sum(count for count, _ in blocks.shapes) == len(lengths)
    assert places <= sum(length + max(MIN_STEP - 1, length / STEPS) for length in lengths)


def test_sequences_of_any_lengths_come_in_few_shapes():
    found = {
        shape
        for seed in range(200)
        for shape in Blocks.of(
            torch.randint(1, 4097, (20,), generator=torch.Generator().manual_seed(seed)).tolist(),
            torch.device("cpu"),
        ).shapes
    }
    assert {width for _, width in found} <= {
        *range(16, 257, 16), *range(256, 513, 32), *range(512, 1025, 64),
        *range(1024, 2049, 128), *range(2048, 4097, 256),
    }  # fmt: skip
    assert {count for count, _ in found} <= {1, 2, 4, 8, 16}


def test_lengths_by_hand():
    blocks = Blocks.of([2, 34, 33, 40], torch.device("cpu"))
    assert blocks.shapes == ((2, 48), (1, 48), (1, 16))
    rows = [range(69, 109), range(2, 36), range(36, 69), range(2)]
    taken = blocks.there.taken.split([48, 48, 48, 16])
    for places, real in zip(taken, rows, strict=True):
        assert places.tolist() == [*real, *[0] * (len(places) - len(real))]
    assert blocks.back.taken.tolist() == [
        144, 145, *range(48, 82), *range(96, 129), *range(40)
    ]  # fmt: skip
    padded = blocks.back.absent[0].nonzero().flatten().tolist()
    assert padded == [*range(40, 48), *range(82, 96), *range(129, 144), *range(146, 160)]
