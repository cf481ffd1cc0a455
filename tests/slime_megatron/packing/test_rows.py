import torch
from hypothesis import given
from hypothesis import strategies as st
from slime_megatron.packing.rows import where_taken


def test_by_hand_where_each_row_went():
    picked = where_taken(torch.tensor([2, 0, 2]), 4)
    assert picked.places.tolist()[0][0] == 1
    assert [row[2] for row in picked.places.tolist()] == [0, 2]
    assert picked.absent is not None
    assert picked.absent.tolist() == [[False, True, False, True], [True, True, False, True]]


@given(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_values_and_gradients_are_those_of_indexing(num_rows: int, taken: list[int]):
    index = torch.tensor([row % num_rows for row in taken], dtype=torch.long)
    x = torch.randn(num_rows, 2, 3, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(len(index), 2, 3, dtype=torch.float64)
    out = where_taken(index, num_rows).of(x)
    (found,) = torch.autograd.grad(out, x, slope)
    wanted = torch.zeros_like(x).index_add(0, index, slope)
    assert torch.equal(out, x[index])
    torch.testing.assert_close(found, wanted)
