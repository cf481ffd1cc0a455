from dataclasses import replace

import torch
from slime_convert.rules import HfTensor, Parameter, Split, Transform
from slime_convert.shards import shard
from slime_megatron.buckets import Piece, pack, row_bytes, split_runs, unpack, unpack_within


def make_piece(name: str, rows: int, stage: int, dtype: torch.dtype = torch.float32) -> Piece:
    """A vector of ``rows`` numbers that two ranks share."""
    parameter = Parameter(
        name=name,
        hf=(HfTensor(f"hf.{name}", (rows,)),),
        transform=Transform.COPY,
        split=Split.COLUMN,
        num_query_groups=1,
        alias=False,
        expert=False,
    )
    return Piece((parameter,), stage, dtype, (rows // 2,))


def names(runs: list[list[Piece]]) -> list[str]:
    return ["".join(piece.name for piece in run) for run in runs]


def test_a_run_ends_at_the_byte_limit_and_at_the_end_of_a_stage():
    # full sizes in bytes: a 40, b 40, c 80 | d 40
    pieces = [
        make_piece(name, rows, stage)
        for name, rows, stage in [("a", 10, 0), ("b", 10, 0), ("c", 20, 0), ("d", 10, 1)]
    ]
    assert names(list(split_runs(pieces, 80))) == ["ab", "c", "d"]
    assert names(list(split_runs(pieces, 1000))) == ["abc", "d"]


def test_a_parameter_larger_than_the_limit_travels_alone():
    pieces = [make_piece(name, rows, 0) for name, rows in [("a", 10), ("b", 100), ("c", 10)]]
    assert names(list(split_runs(pieces, 80))) == ["a", "b", "c"]
    assert list(split_runs([], 80)) == []


def test_parameters_that_belong_together_are_never_parted():
    a, b, c = (make_piece(name, 10, 0) for name in "abc")  # 40 bytes each
    b = replace(b, members=(replace(b.members[0], with_next=True),))
    assert names(list(split_runs([a, b, c], 80))) == ["a", "bc"]
    assert names(list(split_runs([a, b, c], 60))) == ["a", "bc"]


def test_parts_of_any_dtype_are_put_together_bit_for_bit():
    run = [
        make_piece("a", 6, 0, torch.bfloat16),
        make_piece("b", 2, 0, torch.float32),
        make_piece("c", 10, 0, torch.uint8),
    ]
    # parts of 3 * 2, 1 * 4 and 5 * 1 bytes, each in a place of 16
    assert row_bytes(run) == 48
    full = {
        "a": torch.tensor([1.5, -2.0, torch.nan, 4.0, 5.0, 6.0], dtype=torch.bfloat16),
        "b": torch.tensor([1e-30, 7.0]),
        "c": torch.arange(10, dtype=torch.uint8),
    }
    rows = [pack(run, [shard(p.members[0], full[p.name], rank, 2) for p in run]) for rank in (0, 1)]
    bucket = dict(unpack(run, torch.stack(rows)))
    assert list(bucket) == ["hf.a", "hf.b", "hf.c"]
    for name, tensor in full.items():
        back = bucket[f"hf.{name}"]
        assert back.dtype == tensor.dtype
        assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


def test_experts_of_several_ranks_are_told_apart_by_their_blocks_of_rows():
    """Ranks 0 and 1 share expert a, ranks 2 and 3 expert c."""
    a, c = (make_piece(name, 4, 0).members[0] for name in "ac")
    piece = Piece((a, c), 0, torch.float32, (2,), expert=True)
    assert piece.full_bytes == 32
    assert names(list(split_runs([make_piece("b", 4, 0), piece], 1000))) == ["b", "a"]
    full = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "c": torch.tensor([5.0, 6.0, 7.0, 8.0])}
    rows = [pack([piece], [shard(p, full[p.name], rank, 2)]) for p in (a, c) for rank in (0, 1)]
    bucket = dict(unpack([piece], torch.stack(rows)))
    assert {name: x.tolist() for name, x in bucket.items()} == {
        "hf.a": [1, 2, 3, 4],
        "hf.c": [5, 6, 7, 8],
    }


def test_experts_of_many_ranks_are_handed_on_within_the_limit():
    members = tuple(make_piece(name, 4, 0).members[0] for name in "abcde")
    piece = Piece(members, 0, torch.float32, (2,), expert=True)
    full = {each.name: torch.full((4,), float(i)) for i, each in enumerate(members)}
    rows = torch.stack(
        [pack([piece], [shard(p, full[p.name], rank, 2)]) for p in members for rank in (0, 1)]
    )
    buckets = list(unpack_within([piece], rows, 32))
    assert [[name for name, _ in bucket] for bucket in buckets] == [
        ["hf.a", "hf.b"],
        ["hf.c", "hf.d"],
        ["hf.e"],
    ]
    found = {name: tensor for bucket in buckets for name, tensor in bucket}
    assert all(torch.equal(found[f"hf.{name}"], tensor) for name, tensor in full.items())
    assert len(list(unpack_within([piece], rows, 1))) == 5
    assert len(list(unpack_within([piece], rows, 1000))) == 1
