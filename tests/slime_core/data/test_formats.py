import json
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc, parquet
from slime_core.data import formats
from slime_core.data.rows import Source, read_rows
from slime_core.errors import DataError

ROWS = [{"prompt": f"q{i}", "label": str(i)} for i in range(10)]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))


def write_csv(path, rows=ROWS, delimiter=","):
    lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def write_arrow(path, rows=ROWS):
    table = pa.Table.from_pylist(rows)
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "b.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, delimiter="\t"),
    "a.parquet": lambda path: parquet.write_table(
        pa.Table.from_pylist(ROWS), path, row_group_size=3
    ),
    "a.arrow": write_arrow,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("formats")
    for name, write in WRITERS.items():
        write(root / name)
    return root


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_has_the_same_rows_and_slices(folder, name):
    path = str(folder / name)
    assert list(read_rows(path)) == ROWS
    for bounds in (
        "[2:4]",
        "[:3]",
        "[8:]",
        "[-2:]",
        "[:-7]",
        "[-3:-1]",
        "[5:5]",
        "[9:99]",
        "[7:2]",
    ):
        expected = ROWS[slice(*(int(b) if b else None for b in bounds[1:-1].split(":")))]
        assert list(read_rows(f"{path}@{bounds}")) == expected, bounds
        assert len(Source(f"{path}@{bounds}")) == len(expected)


@pytest.mark.parametrize("name", WRITERS)
def test_reading_goes_on_from_any_place(folder, name):
    source = Source(f"{folder / name}@[1:9]")
    whole = list(source.records())
    for number, (_, place) in enumerate(whole, 1):
        assert list(source.records(place)) == whole[number:]


@given(start=st.integers(-12, 12) | st.none(), stop=st.integers(-12, 12) | st.none())
def test_slices_of_several_files_are_those_of_a_list(tmp_path_factory, start, stop):
    root = tmp_path_factory.getbasetemp() / "three"
    if not root.is_dir():
        root.mkdir()
        for part, rows in enumerate((ROWS[:4], ROWS[4:5], ROWS[5:])):
            parquet.write_table(pa.Table.from_pylist(rows), root / f"{part}.parquet")
    bounds = f"{'' if start is None else start}:{'' if stop is None else stop}"
    assert list(read_rows(f"{root}@[{bounds}]")) == ROWS[start:stop]


def test_a_data_set_saved_by_datasets_is_read_without_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one", num_shards=3)
    assert list(read_rows(str(tmp_path / "one"))) == ROWS
    assert list(read_rows(f"{tmp_path}/one@[-2:]")) == ROWS[-2:]
    splits = datasets.DatasetDict({"test": saved.select([0]), "train": saved.select(range(1, 10))})
    splits.save_to_disk(tmp_path / "dict")
    assert list(read_rows(str(tmp_path / "dict"))) == ROWS[1:]
    assert list(read_rows(str(tmp_path / "dict/test"))) == ROWS[:1]


def test_a_folder_is_its_files_for_training_in_order(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data/train-00001-of-00002.jsonl", ROWS[5:])
    write_jsonl(tmp_path / "data/train-00000-of-00002.jsonl", ROWS[:5])
    write_jsonl(tmp_path / "data/test-00000-of-00001.jsonl", ROWS[:1])
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert list(read_rows(str(tmp_path))) == ROWS


def test_a_folder_that_leaves_a_doubt_is_refused(tmp_path):
    write_jsonl(tmp_path / "test.jsonl")
    with pytest.raises(DataError, match=r"for evaluation \(test.jsonl\) and none for training"):
        Source(str(tmp_path))
    write_csv(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"several kinds \(.csv, .jsonl\)"):
        Source(str(tmp_path))


def test_fields_of_csv_go_over_lines_and_are_named_by_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffprompt,label\n"two\nlines","a ""b"""\n\nshort\nlast,1\n')
    with pytest.raises(DataError, match=r"a.csv:5 has 1 fields, and there are 2 columns"):
        list(read_rows(str(path)))
    assert list(read_rows(f"{path}@[:1]")) == [{"prompt": "two\nlines", "label": 'a "b"'}]
    assert list(read_rows(f"{path}@[2:]")) == [{"prompt": "last", "label": "1"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"prompt": "a"},\n {]', r"a.json:2 is not JSON: .*column 3; .* called .jsonl"),
        ("a.json", f"[{'9' * 5000}]", r"a.json is not read: Exceeds the limit"),
        ("a.json", "[" * 100_000, r"a.json is nested too deeply"),
        ("a.json", '{"rows": []}', r"a.json holds one dict, neither an array"),
        ("a.csv", 'prompt\na\n"b"c\n', r"a.csv:3 is not CSV: ',' expected after"),
        ("a.jsonl", '{"q": 1}\n\ufeff{"q": 2}\n', r"a.jsonl:2 is not JSON"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        list(read_rows(str(tmp_path / name)))


@pytest.mark.parametrize(("name", "text"), [("a.json", '[{"q": 1}]'), ("a.jsonl", '{"q": 1}\n')])
def test_a_byte_order_mark_at_the_beginning_is_no_part_of_the_first_row(tmp_path, name, text):
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    assert list(read_rows(str(tmp_path / name))) == [{"q": 1}]


def test_rows_without_lines_are_named_by_their_number(folder):
    for name, place in (("a.parquet", "a.parquet, row 4"), ("a.csv", "a.csv:5")):
        records = [record for record, _ in Source(str(folder / name)).records()]
        assert records[3].place == str(folder / place)


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(ROWS * 100), path)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet is a damaged parquet file"):
        list(read_rows(str(path)))


def test_jsonl_needs_no_pyarrow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert list(read_rows(str(folder / "a.jsonl"))) == ROWS
    with pytest.raises(DataError, match=r"a.parquet is read with pyarrow: install pyarrow"):
        list(read_rows(str(folder / "a.parquet")))


def test_counting_looks_into_no_row(folder, monkeypatch):
    monkeypatch.setattr(json, "loads", None)
    monkeypatch.setattr(formats, "_rows_behind", None)
    assert len(Source(str(folder / "a.jsonl"))) == len(Source(str(folder / "a.parquet"))) == 10
