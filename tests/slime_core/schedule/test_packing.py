import random
import time

from hypothesis import given
from hypothesis import strategies as st
from slime_core.schedule.packing import balance, even_fit, first_fit, split_to

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


def test_first_fit_decreasing_by_hand():
    assert first_fit([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 2, 3, 5]]


def test_what_is_too_long_is_alone():
    assert first_fit([3, 99, 3], 6) == [[1], [0, 2]]


def test_differencing_by_hand():
    parts = balance([8, 7, 6, 5, 4], 2, equal_counts=False)
    assert sorted(sum([8, 7, 6, 5, 4][i] for i in part) for part in parts) == [14, 16]


def test_equal_counts_with_a_perfect_answer():
    weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    parts = balance(weights, 2, equal_counts=True)
    assert [len(part) for part in parts] == [4, 4]
    assert [sum(weights[i] for i in part) for part in parts] == [18.0, 18.0]


@given(LENGTHS, st.integers(1, 60))
def test_first_fit_tiles_and_keeps_the_limit(lengths, limit):
    bins = first_fit(lengths, limit)
    assert sorted(i for bin_ in bins for i in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= limit or len(b) == 1 for b in bins)


@given(LENGTHS, st.integers(1, 6), st.booleans())
def test_balance_tiles(lengths, parts, equal_counts):
    result = balance(lengths, parts, equal_counts=equal_counts)
    assert len(result) == parts
    assert sorted(i for part in result for i in part) == list(range(len(lengths)))
    assert all(part == sorted(part) for part in result)
    if equal_counts:
        sizes = [len(part) for part in result]
        assert max(sizes) - min(sizes) <= 1


@given(LENGTHS, st.integers(0, 30))
def test_splitting_tiles_and_leaves_no_bin_empty_if_it_can(lengths, more):
    bins = first_fit(lengths, 60)
    result = split_to(bins, lengths, len(bins) + more)
    assert len(result) == len(bins) + more
    assert sorted(i for bin_ in result for i in bin_) == list(range(len(lengths)))
    assert sum(1 for bin_ in result if bin_) == min(len(result), len(lengths))


def test_the_heaviest_bin_that_can_be_divided_is_halved_first_by_hand():
    weights = [1.0, 1.0, 5.0, 6.0, 20.0]
    halved = split_to([[0, 1], [2, 3], [4]], weights, 4)
    assert sorted(halved) == [[0, 1], [2], [3], [4]]
    assert sorted(split_to([[0, 1], [2, 3], [4]], weights, 6)) == [[], [0], [1], [2], [3], [4]]


def naive_first_fit(lengths, limit):
    bins, room = [], []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        found = next((b for b, free in enumerate(room) if free >= lengths[i]), None)
        if found is None:
            bins.append([])
            room.append(limit)
            found = len(bins) - 1
        bins[found].append(i)
        room[found] -= lengths[i]
    return [sorted(bin_) for bin_ in bins]


@given(LENGTHS, st.integers(1, 60))
def test_first_fit_is_first_fit(lengths, limit):
    assert first_fit(lengths, limit) == naive_first_fit(lengths, limit)


def test_even_fit_by_hand():
    assert even_fit([5, 4, 3, 3], [5.0, 4.0, 3.0, 3.0], 8, 2) == [[0, 3], [1, 2]]


def test_even_fit_says_when_bins_are_too_few():
    assert even_fit([5, 5, 5], [1.0, 1.0, 1.0], 9, 2) is None


def test_even_fit_leaves_the_too_long_alone():
    assert even_fit([1, 99, 1], [1.0, 99.0, 1.0], 6, 2) == [[1], [0, 2]]


@given(LENGTHS, st.integers(1, 60), st.integers(0, 4))
def test_even_fit_tiles_and_keeps_the_limit(lengths, limit, more):
    count = len(first_fit(lengths, limit)) + more
    bins = even_fit(lengths, [x * x for x in lengths], limit, count)
    if bins is None:
        return
    assert len(bins) == count
    assert sorted(i for bin_ in bins for i in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in b) <= limit or len(b) == 1 for b in bins)


def test_a_hundred_thousand_lengths_take_seconds():
    draw = random.Random(0)
    lengths = [min(32_768, int(draw.lognormvariate(7.5, 1.0)) + 1) for _ in range(100_000)]
    begin = time.process_time()
    bins = first_fit(lengths, 32_768)
    parts = balance(lengths, 64, equal_counts=True)
    assert time.process_time() - begin < 20  # less than two on a quiet machine
    assert len(bins) <= 1.01 * sum(lengths) / 32_768 + 1
    sums = [sum(lengths[i] for i in part) for part in parts]
    assert max(sums) <= 1.001 * sum(sums) / 64
