import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slime_core.errors import SampleError
from slime_megatron.packing.pack import PackedMicrobatch, PackLayout, pack


def test_rows_predict_the_response_tokens_after_them():
    packed = pack(
        [torch.tensor([11, 12, 13, 14, 15]), torch.tensor([21, 22])], [2, 1], PackLayout()
    )
    assert packed.tokens.tolist() == [11, 12, 13, 14, 15, 21, 22]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert packed.rows.tolist() == [2, 3, 5]
    assert packed.targets.tolist() == [14, 15, 22]
    assert packed.sample.tolist() == [0, 0, 1]
    assert packed.response_index.tolist() == [0, 1, 2]


def test_context_parallel_ranks_score_what_their_chunks_predict():
    # Padded to 8: chunks 11 12 | 13 14 | 15 . | . .
    sample = torch.tensor([11, 12, 13, 14, 15])
    first, second = (pack([sample], [3], PackLayout(cp_size=2, cp_rank=rank)) for rank in (0, 1))
    assert first.tokens.tolist() == [11, 12, 0, 0]
    assert first.rows.tolist() == [1]
    assert first.targets.tolist() == [13]
    assert second.tokens.tolist() == [13, 14, 15, 0]
    assert second.rows.tolist() == [0, 1]
    assert second.targets.tolist() == [14, 15]
    assert second.response_index.tolist() == [1, 2]


def test_spans_are_those_of_the_ranks_own_chunks():
    # Padded to 4, a chunk is a token. Rank 1 has the second and the third; the rows of both ranks
    # end to end are 11 14 12 13 of it, and of the other sample likewise.
    tokens = [torch.tensor([11, 12, 13, 14]), torch.tensor([21, 22, 23])]
    spans = pack(tokens, [1, 1], PackLayout(cp_size=2, cp_rank=1)).spans
    assert [rows.tolist() for rows in spans.queries] == [[0], [1], [2], [3]]
    assert [rows.tolist() for rows in spans.keys] == [[0, 4], [0, 4, 5], [2, 6], [2, 6, 7]]


def test_a_microbatch_without_samples_is_padding_that_predicts_nothing():
    packed = pack([], [], PackLayout(cp_size=2, row_multiple=3))
    assert packed.tokens.tolist() == [0] * 6
    assert packed.rows.numel() == 0
    assert packed.num_samples == 0


def test_a_response_without_a_token_before_it_is_refused():
    with pytest.raises(SampleError, match="at least one prompt token"):
        pack([torch.tensor([5, 6])], [2], PackLayout())


def test_a_sample_without_a_response_is_only_context():
    packed = pack([torch.tensor([5, 6]), torch.tensor([7, 8])], [0, 1], PackLayout())
    assert packed.targets.tolist() == [8]
    assert packed.sample.tolist() == [1]


def ranks_of(tokens: list[torch.Tensor], lengths: list[int], cp: int, rows: int):
    layouts = [PackLayout(cp_size=cp, cp_rank=rank, row_multiple=rows) for rank in range(cp)]
    return [pack(tokens, lengths, layout) for layout in layouts]


@st.composite
def samples(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[int]]:
    shapes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), max_size=5))
    start, tokens = 1, []
    for prompt, response in shapes:
        tokens.append(torch.arange(start, start + prompt + response))
        start += prompt + response
    return tokens, [response for _, response in shapes]


@given(samples(), st.integers(1, 3), st.sampled_from([1, 2, 3, 8]))
def test_every_token_is_placed_once_and_every_response_token_predicted_once(
    case: tuple[list[torch.Tensor], list[int]], cp: int, rows: int
):
    tokens, lengths = case
    ranks: list[PackedMicrobatch] = ranks_of(tokens, lengths, cp, rows)
    placed = torch.cat([rank.tokens for rank in ranks])
    every = torch.cat(tokens) if tokens else placed[:0]
    assert torch.equal(placed[placed > 0].sort().values, every)
    assert len({rank.tokens.numel() for rank in ranks}) == 1
    assert ranks[0].tokens.numel() % rows == 0
    index = torch.cat([rank.response_index for rank in ranks])
    assert torch.equal(index.sort().values, torch.arange(sum(lengths)))
    responses = torch.cat(
        [t[len(t) - n :] for t, n in zip(tokens, lengths, strict=True)] or [every]
    )
    for rank in ranks:
        assert torch.equal(rank.pick(responses), rank.targets)
        # Tokens are consecutive numbers, so the row before a target holds its predecessor.
        assert torch.equal(rank.tokens[rank.rows] + 1, rank.targets)
