import json

import pytest
from slime_core.config.data import DataConfig
from slime_core.data.first_look import first_look
from slime_core.data.rows import read_rows
from slime_core.errors import DataError

ROWS = [{"prompt": "a"}, {"prompt": "b"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("codec", "told"),
    [
        ("utf-16", "UTF-16"),  # with a byte order mark
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
    ],
)
@pytest.mark.parametrize(
    ("name", "text"),
    [("p.jsonl", LINES), ("p.json", json.dumps(ROWS)), ("p.csv", "prompt\na\n")],
)
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_text_of_another_encoding_is_told_once(tmp_path, codec, told, name, text, policy):
    path = tmp_path / name
    path.write_bytes(text.encode(codec))
    problem = first_look(str(path), DataConfig(data_error_policy=policy)).problem
    assert problem == (
        f"{path} is {told}, as its first bytes say, and prompt files are UTF-8: save it as UTF-8, "
        f"for instance with iconv -f {told} -t UTF-8"
    )


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n \n"])
def test_an_array_under_the_name_of_lines_is_told_once_and_read_when_renamed(
    tmp_path, indent, before
):
    path = tmp_path / "p.jsonl"
    path.write_text(before + json.dumps(ROWS, indent=indent) + "\n\n", encoding="utf-8")
    problem = first_look(str(path), DataConfig()).problem
    assert problem == (
        f"{path} holds one JSON array, not an object on every line: rename it to p.json, which is "
        "read as an array of objects"
    )
    path.rename(tmp_path / "p.json")
    assert list(read_rows(f"{tmp_path}/p.json")) == ROWS


def test_an_array_whose_end_is_far_from_its_beginning_is_one(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(ROWS * 1000, indent=1))
    with pytest.raises(DataError, match="holds one JSON array"):
        list(read_rows(str(path)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('["a"]\n["b"]\n', "p.jsonl:1 is of type list, not an object"),
        ('[\n{"prompt": "a"}\n', "p.jsonl:1 is not JSON"),
        ("\0\0\0\0\n", "p.jsonl:1 is not JSON"),  # what a crash left
    ],
)
def test_single_bad_rows_are_still_rows(tmp_path, text, told):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=told):
        list(read_rows(str(path)))


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_an_empty_file_is_only_empty(tmp_path, name):
    (tmp_path / name).write_text("")
    assert list(read_rows(f"{tmp_path}/{name}")) == []
