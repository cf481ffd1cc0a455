import pytest
import torch
from slime_convert import shards
from slime_convert.rules import HfTensor, Parameter, Split, Transform
from slime_core.errors import CheckpointError


def parameter(split, *shape):
    hf = (HfTensor("hf.weight", shape),)
    return Parameter("m.weight", hf, Transform.COPY, split, 1, alias=False, expert=False)


def test_rows_columns_halves_and_all():
    full = torch.arange(16).reshape(4, 4)
    column, row = parameter(Split.COLUMN, 4, 4), parameter(Split.ROW, 4, 4)
    gated, whole = parameter(Split.GATED, 4, 4), parameter(Split.REPLICATED, 4, 4)
    assert shards.shard(column, full, 1, 2).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert shards.shard(row, full, 1, 2)[:, 0].tolist() == [2, 6, 10, 14]
    assert shards.shard(gated, full, 1, 2)[:, 0].tolist() == [4, 12]
    assert shards.shard(whole, full, 1, 2) is full


def test_a_vocabulary_is_padded_with_zeros_and_the_padding_is_taken_off_again():
    full = torch.ones(5, 2)
    vocab = parameter(Split.VOCAB, 5, 2)
    parts = [shards.shard(vocab, full, rank, 2, padded_vocab=8) for rank in range(2)]
    assert parts[1].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]
    assert torch.equal(shards.unshard(vocab, parts), full)
    assert shards.shard(vocab, full, 0, 2).shape == (128, 2)  # 5 -> 256 rows over two ranks


@pytest.mark.parametrize(
    ("vocab", "tp", "padded"), [(100, 1, 128), (128, 1, 128), (129, 1, 256), (151936, 4, 152064)]
)
def test_the_padded_vocabulary_is_megatrons(vocab, tp, padded):
    assert shards.padded_vocab_size(vocab, tp) == padded


def test_fewer_rows_than_the_vocabulary_are_refused():
    with pytest.raises(CheckpointError, match="has 5 rows, and the model only 4"):
        shards.shard(parameter(Split.VOCAB, 5, 2), torch.ones(5, 2), 0, 2, padded_vocab=4)


@pytest.mark.parametrize(("split", "what"), [(Split.COLUMN, "6 rows"), (Split.ROW, "6 columns")])
def test_a_size_that_ranks_cannot_share_is_named(split, what):
    with pytest.raises(CheckpointError, match=rf"`m.weight`: {what} .*4 tensor-parallel ranks"):
        shards.shard(parameter(split, 6, 6), torch.zeros(6, 6), 0, 4)


def test_parts_that_do_not_join_to_the_model_are_refused():
    parts = [torch.zeros(3, 2), torch.zeros(3, 2)]
    with pytest.raises(CheckpointError, match=r"2 parts of shape \[3, 2\] join to \[6, 2\]"):
        shards.unshard(parameter(Split.COLUMN, 4, 2), parts)
