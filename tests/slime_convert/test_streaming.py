"""Reading ahead, memory that is used again, and looking for NaN."""

import threading
import time

import pytest
import torch
from slime_convert.streaming.finite import all_finite
from slime_convert.streaming.memory import SMALLEST, Pool
from slime_convert.streaming.prefetch import prefetch


def test_items_come_in_order_and_no_more_ahead_than_allowed():
    made: list[int] = []

    def produce():
        for number in range(20):
            made.append(number)
            yield number

    seen = []
    with prefetch(produce(), size=lambda _: 10, max_bytes=30) as items:
        for number in items:
            time.sleep(0.002)
            seen.append(number)
            assert len(made) - len(seen) <= 3 + 1  # three wait, one is being put
    assert seen == list(range(20))


def test_an_item_larger_than_allowed_still_passes():
    with prefetch([1, 2, 3], size=lambda _: 100, max_bytes=10) as items:
        assert list(items) == [1, 2, 3]


def test_an_error_is_raised_after_the_items_before_it():
    def produce():
        yield 1
        raise ValueError("broken")

    with prefetch(produce(), size=lambda _: 1, max_bytes=10) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="broken"):
            next(items)


def test_one_who_waits_is_told_of_the_end():
    waits = threading.Event()

    def produce():
        yield 1
        waits.wait()
        time.sleep(0.02)  # until the next item is waited for

    with prefetch(produce(), size=lambda _: 1, max_bytes=10) as items:
        assert next(items) == 1
        waits.set()
        assert list(items) == []


def test_leaving_early_ends_the_thread():
    threads = threading.active_count()
    with prefetch(iter(range(10**9)), size=lambda _: 1, max_bytes=10) as items:
        assert next(items) == 0
    assert threading.active_count() == threads


def test_memory_comes_back_when_the_last_view_is_gone():
    pool = Pool()
    first = pool.empty((SMALLEST,), torch.int16)
    assert first.untyped_storage().nbytes() == first.nbytes
    address, view = first.data_ptr(), first[5:]
    del first
    second = pool.empty((SMALLEST,), torch.int16)
    assert second.data_ptr() != address
    del view, second
    taken = [pool.empty((SMALLEST // 2, 2), torch.int16) for _ in range(2)]
    assert address in {tensor.data_ptr() for tensor in taken}


def test_memory_that_is_used_again_is_no_larger_than_what_is_asked_for():
    pool = Pool()
    address = pool.empty((SMALLEST + 8,), torch.uint8).data_ptr()
    again = pool.empty((SMALLEST // 4, 4), torch.uint8)
    assert (again.data_ptr(), again.shape) == (address, (SMALLEST // 4, 4))
    assert again.untyped_storage().nbytes() == SMALLEST
    assert pool.empty((2, 3), torch.int16).shape == (2, 3)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("bad", ["nan", "-nan", "inf", "-inf"])
def test_one_value_that_is_not_finite_is_found(dtype, bad):
    tensor = torch.full((3, 100_001), -448.0).to(dtype)
    assert all_finite(tensor)
    if dtype == torch.float8_e4m3fn and "inf" in bad:
        pytest.skip("the type has no infinity")
    tensor[2, 77_777] = float(bad)
    assert not all_finite(tensor)


def test_integers_and_nothing_are_finite():
    assert all_finite(torch.tensor([2**31 - 1, -1], dtype=torch.int32))
    assert all_finite(torch.empty(0, 4))
