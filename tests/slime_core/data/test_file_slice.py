from pathlib import Path

import pytest
from slime_core.data.file_slice import FileSlice, parse
from slime_core.errors import DataError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a.jsonl", FileSlice(Path("a.jsonl"))),
        ("a.jsonl@[1:-2]", FileSlice(Path("a.jsonl"), 1, -2)),
        ("a.jsonl@[:5]*2.5", FileSlice(Path("a.jsonl"), None, 5, 2.5)),
        ("d/a@b.jsonl*3", FileSlice(Path("d/a@b.jsonl"), weight=3.0)),
        ("x[1].jsonl", FileSlice(Path("x[1].jsonl"))),
    ],
)
def test_rows_and_weight_are_behind_the_path(spec, expected):
    assert parse(spec) == expected


@pytest.mark.parametrize("spec", ["a.jsonl@[1]", "a.jsonl@[a:b]", "a.jsonl@[1:2", "a@[1:2]@[3:4]"])
def test_a_slice_that_is_none_is_refused(spec):
    with pytest.raises(DataError, match=r"PATH@\[START:STOP\]"):
        parse(spec)


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(DataError, match="leave the file out"):
        parse("a.jsonl*0")


@pytest.mark.parametrize("weight", [0.3, 0.5, 1.0, 2.0, 2.7])
def test_over_the_epochs_every_row_is_seen_as_often_as_its_weight_says(weight):
    part, rows, epochs = FileSlice(Path("a"), weight=weight), 50, 40
    seen = {
        epoch: [
            sum(part.sees(row, number=n, epoch=epoch) for n in range(part.num_passes))
            for row in range(rows)
        ]
        for epoch in range(epochs)
    }
    assert all(abs(sum(counts) - weight * rows) <= 1 for counts in seen.values())
    assert part.epoch_len(rows) == weight * rows
    for row in range(rows):
        assert abs(sum(seen[epoch][row] for epoch in seen) - weight * epochs) <= 1
