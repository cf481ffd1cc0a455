import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slime_megatron.packing.zigzag import chunk_multiple, gathered_order, local_positions


def test_two_ranks_hold_an_outer_and_an_inner_pair_of_chunks():
    assert local_positions(8, cp_size=2, cp_rank=0).tolist() == [0, 1, 6, 7]
    assert local_positions(8, cp_size=2, cp_rank=1).tolist() == [2, 3, 4, 5]


def test_one_rank_holds_everything_in_order():
    assert local_positions(5, cp_size=1, cp_rank=0).tolist() == [0, 1, 2, 3, 4]
    assert chunk_multiple(1) == 1


def test_ranks_attend_to_equally_many_pairs():
    pairs = [int((local_positions(24, cp_size=3, cp_rank=r) + 1).sum()) for r in range(3)]
    assert pairs == [100, 100, 100]


@given(st.integers(1, 4), st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_rows_of_all_ranks_put_in_gathered_order_are_the_packed_batch(cp: int, chunks: list[int]):
    lengths = [chunk * chunk_multiple(cp) for chunk in chunks]
    packed = torch.arange(sum(lengths))
    ranks = [
        torch.cat(
            [x[local_positions(len(x), cp_size=cp, cp_rank=r)] for x in packed.split(lengths)]
        )
        for r in range(cp)
    ]
    assert torch.equal(torch.cat(ranks)[gathered_order(lengths, cp_size=cp)], packed)


def test_a_length_that_is_no_multiple_is_a_bug():
    with pytest.raises(AssertionError, match="6 is not a multiple of 4"):
        local_positions(6, cp_size=2, cp_rank=0)
