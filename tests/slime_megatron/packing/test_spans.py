import torch
from hypothesis import given
from hypothesis import strategies as st
from slime_megatron.packing.spans import Padded, Spans, Varlen, causal_spans
from slime_megatron.packing.zigzag import chunk_multiple, local_positions

CPU = torch.device("cpu")


def attended(lengths: list[int], cp: int, rank: int) -> set[tuple[int, int]]:
    """(packed query, packed key) pairs by definition."""
    pairs: set[tuple[int, int]] = set()
    start = 0
    for length in lengths:
        for position in local_positions(length, cp_size=cp, cp_rank=rank).tolist():
            pairs |= {(start + position, start + key) for key in range(position + 1)}
        start += length
    return pairs


def numbering(lengths: list[int], cp: int) -> list[list[int]]:
    """Per rank, the packed number of each of its rows."""
    whole = torch.arange(sum(lengths)).split(lengths)
    return [
        torch.cat([x[local_positions(len(x), cp_size=cp, cp_rank=r)] for x in whole]).tolist()
        for r in range(cp)
    ]


def pairs_of(spans: Spans, lengths: list[int], cp: int, rank: int) -> set[tuple[int, int]]:
    names = numbering(lengths, cp)
    gathered = [name for rows in names for name in rows]
    pairs: set[tuple[int, int]] = set()
    for queries, keys in zip(spans.queries, spans.keys, strict=True):
        for i, query in enumerate(queries.tolist()):
            seen = keys[: len(keys) - len(queries) + i + 1].tolist()
            pairs |= {(names[rank][query], gathered[key]) for key in seen}
    return pairs


@given(st.integers(1, 3), st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_spans_attend_exactly_to_what_comes_before_in_the_same_sequence(cp: int, chunks: list[int]):
    lengths = [chunk * chunk_multiple(cp) for chunk in chunks]
    for rank in range(cp):
        spans = causal_spans(lengths, cp_size=cp, cp_rank=rank)
        assert pairs_of(spans, lengths, cp, rank) == attended(lengths, cp, rank)


@given(st.integers(1, 3), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_rectangles_and_end_to_end_forms_hold_the_same_spans(cp: int, chunks: list[int]):
    lengths = [chunk * chunk_multiple(cp) for chunk in chunks]
    spans = causal_spans(lengths, cp_size=cp, cp_rank=cp - 1)
    padded, varlen = Padded.of(spans, CPU), Varlen.of(spans, CPU)
    flat = torch.cat([rectangle.query_rows.flatten() for rectangle in padded.rectangles])
    assert flat[padded.restore].tolist() == list(range(sum(lengths) // cp))
    assert varlen.cu_queries.tolist()[-1] == sum(lengths) // cp
    keys = torch.arange(sum(lengths)) if varlen.keys is None else varlen.keys.taken
    for i, span in enumerate(spans.keys):
        assert torch.equal(keys[varlen.cu_keys[i] : varlen.cu_keys[i + 1]], span)


def test_short_sequences_do_not_share_a_rectangle_with_long_ones():
    padded = Padded.of(causal_spans([100, 3, 60, 2]), CPU)
    shapes = [tuple(rectangle.query_rows.shape) for rectangle in padded.rectangles]
    assert shapes == [(2, 100), (2, 3)]
    assert all(rectangle.mask is None for rectangle in padded.rectangles)


def test_a_rectangle_holds_no_sequence_of_less_than_half_its_longest():
    padded = Padded.of(causal_spans([4, 9, 5, 10]), CPU)
    assert [tuple(r.key_rows.shape) for r in padded.rectangles] == [(3, 10), (1, 4)]


def test_a_padded_mask_ends_at_the_key_row_of_its_query():
    # The last of two ranks of a sequence of 4 and one of 8: chunks of 1 and of 2 rows.
    padded = Padded.of(causal_spans([4, 8], cp_size=2, cp_rank=1), CPU)
    shown = [rectangle.mask[:, 0].int().tolist() for rectangle in padded.rectangles]
    assert shown == [
        [[[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]],
         [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]],
        [[[1, 1]]],
    ]  # fmt: skip
