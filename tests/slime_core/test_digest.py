import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slime_core import digest
from slime_core.digest import BLOCK, finished, tensor_digest, tensor_digests

BITS = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & BITS
    return x ^ (x >> 31)


def block_sums(data: bytes) -> list[list[int]]:
    """Under either key, in plain integers."""
    keys = [mix(i * GOLDEN & BITS) >> 32 for i in range(1, 2 * BLOCK + 1)]
    padded = data + bytes(-len(data) % 8)
    words = [int.from_bytes(padded[i : i + 4], "little") for i in range(0, len(padded), 4)]
    found = []
    for half in (keys[:BLOCK], keys[BLOCK:]):
        keyed = [(word + half[i % BLOCK]) % 2**32 for i, word in enumerate(words)]
        products = [a * b for a, b in zip(keyed[::2], keyed[1::2], strict=True)]
        edges = range(0, len(products), BLOCK // 2)
        found.append([sum(products[i : i + BLOCK // 2]) & BITS for i in edges])
    return found


def scrambled(sums: list[int]) -> int:
    return sum(mix((s + p * GOLDEN) & BITS) for p, s in enumerate(sums, 1)) & BITS


def reference(data: bytes) -> str:
    """The same definition in plain integers."""
    return "".join(f"{mix(scrambled([*sums, len(data)])):016x}" for sums in block_sums(data))


@pytest.mark.parametrize("size", [0, 1, 3, 4, 7, 4 * BLOCK, 4 * BLOCK + 5])
def test_it_is_what_its_definition_says(size):
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.manual_seed(size))
    assert tensor_digest(data) == reference(bytes(data.tolist()))


def test_sums_of_blocks_that_were_added_elsewhere_are_finished_to_the_same_digest():
    sizes = [5, 4 * BLOCK + 8, 0]
    data = [bytes(i * 37 % 256 for i in range(size)) for size in sizes]
    sums = [[scrambled(half) for half in block_sums(x)] for x in data]
    wide = np.array(sums, dtype=np.uint64).view(np.int64)
    found = finished(wide, np.array(sizes), np.array([1, 2, 0]))
    assert found == [reference(x) for x in data]


def test_no_tensors_have_no_digests():
    assert tensor_digests([]) == []


@given(st.integers(1, 200), st.integers(0, 10**6), st.data())
@settings(max_examples=40, deadline=None)
def test_any_flipped_bit_changes_it(size, seed, data):
    x = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.manual_seed(seed))
    y = x.clone()
    place = data.draw(st.integers(0, size - 1))
    y[place] ^= 1 << data.draw(st.integers(0, 7))
    assert tensor_digest(x) != tensor_digest(y)


def test_order_matters():
    x = torch.arange(24.0).reshape(4, 6)
    assert tensor_digest(x) != tensor_digest(x.t())
    assert tensor_digest(x) != tensor_digest(x.flip(0))


def test_two_changed_signs_do_not_cancel():
    x = torch.randn(64)
    y = x.clone()
    y[3], y[40] = -y[3], -y[40]
    assert tensor_digest(x) != tensor_digest(y)


def test_swapped_blocks_are_noticed():
    x = torch.randn(2, BLOCK)
    assert tensor_digest(x) != tensor_digest(x.flip(0))


def test_views_and_layouts_have_the_digest_of_their_values():
    x = torch.randn(9, 5).bfloat16()
    assert tensor_digest(x[1:, :3]) == tensor_digest(x[1:, :3].clone())
    assert tensor_digest(x.flatten()[1:]) == tensor_digest(x.flatten()[1:].clone())


def test_trailing_zeros_are_not_free():
    assert tensor_digest(torch.zeros(3)) != tensor_digest(torch.zeros(4))


def test_chunks_do_not_matter(monkeypatch):
    x = torch.randn(5 * BLOCK + 3)
    whole = tensor_digests([x, x[:7]])
    monkeypatch.setattr("slime_core.digest._CHUNK", {"cpu": BLOCK})
    assert tensor_digests([x, x[:7]]) == whole


def test_both_ways_to_multiply_agree(monkeypatch):
    x = torch.randn(3 * BLOCK + 5)
    quick = tensor_digest(x)
    monkeypatch.setattr(digest, "_products_cpu", digest._products)
    assert tensor_digest(x) == quick


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees_with_the_cpu():
    x = torch.randn(3 * BLOCK + 17).bfloat16()
    assert tensor_digest(x.cuda()) == tensor_digest(x)
