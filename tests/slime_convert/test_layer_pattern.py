"""Patterns of layers on command lines, and what is no pattern."""

import pytest
from slime_convert.layer_pattern import read_pattern, written_out


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[0]*1+[1]*2", [0, 1, 1]),
        ("2*[0, 1]", [0, 1, 0, 1]),
        (" [1] ", [1]),
        ("3", "3"),
        ("[x]", "[x]"),
        ("[1]*1000000000000", "[1]*1000000000000"),
        ("[1]*99999999999999999999", "[1]*99999999999999999999"),
        ("[[1]*100000]*100000", "[[1]*100000]*100000"),
    ],
)
def test_lists_are_written_out_and_anything_else_stays(text, value):
    assert read_pattern(text) == value


def test_brackets_without_end_are_no_pattern():
    for text in ("[" * 100_000, "[" * 500 + "]" * 500 + "+" * 5_000):
        assert read_pattern(text) == text


def test_a_number_stands_for_every_so_many_layers():
    assert written_out("2", 5) == [1, 0, 1, 0, 1]
    assert written_out("[0]*1+[1]*2", 3) == [0, 1, 1]
