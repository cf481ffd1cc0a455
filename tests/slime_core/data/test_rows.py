import json

import pyarrow as pa
import pytest
from pyarrow import parquet
from slime_core.data.prompts import read_rows
from slime_core.errors import DataError

ROWS = [{"prompt": str(i)} for i in range(10)]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return path


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ("", ROWS),
        ("@[2:4]", ROWS[2:4]),
        ("@[:3]", ROWS[:3]),
        ("@[8:]", ROWS[8:]),
        ("@[-2:]", ROWS[-2:]),
    ],
)
def test_jsonl_and_its_slices(jsonl, bounds, expected):
    assert list(read_rows(f"{jsonl}{bounds}")) == expected


def test_parquet_and_json(tmp_path):
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    assert list(read_rows(f"{tmp_path}/rows.parquet@[1:3]")) == ROWS[1:3]
    assert list(read_rows(f"{tmp_path}/rows.json")) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"x": 1}\n{"x": 2\n', "a.jsonl:2 is not JSON: .* column"),
        ("a.jsonl", "[1]\n[2]\n", ":1 is of type list, not an object"),
        (
            "a.jsonl",
            '{"x": 1}\n{"x": ' + "1" * 5000 + "}\n",
            "a.jsonl:2 is not read: .*4300 digits",
        ),
        ("a.json", '[{"x": ' + "1" * 5000 + "}]", "a.json is not read: .*4300 digits"),
        ("a.json", "[" * 200_000, "a.json is nested too deeply"),
        ("a.json", '{"x": 1}', "holds one dict, neither an array"),
        ("a.parquet", "nonsense", "not a readable parquet file"),
        ("a.arrow", "nonsense", "not a readable arrow file"),
        ("a.json", '[{"x": 1}', r"a.json:1 is not JSON: .*called .jsonl"),
        ("a.txt", "x", r"ends in '.txt'; known are .jsonl, .ndjson, .json, .csv"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(str(tmp_path / name)))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        list(read_rows(f"{tmp_path}/nowhere.jsonl@[0:1]"))
    with pytest.raises(DataError, match="a folder with no data files"):
        list(read_rows(str(tmp_path)))
