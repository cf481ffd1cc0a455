"""Rows of jsonl, json and parquet files, each with the place it came from."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow
from pyarrow import parquet

from slime_core.errors import DataError

_SLICE = re.compile(r"(?P<path>.+)@\[(?P<start>-?\d*):(?P<stop>-?\d*)\]")


@dataclass(frozen=True, slots=True)
class Row:
    """One record and where to find it, for error messages."""

    values: dict[str, Any]
    place: str


def read_rows(path: str) -> Iterator[dict[str, Any]]:
    """The records of ``path``, a jsonl, json or parquet file, optionally ``path@[start:stop]``.

    Bounds are those of Python slices, negative ones included.
    """
    return (row.values for row in numbered_rows(path))


def numbered_rows(path: str) -> Iterator[Row]:
    """``read_rows`` with the place of each record."""
    found = _SLICE.fullmatch(path)
    if found is None:
        return _all_rows(Path(path))
    rows = _all_rows(Path(found["path"]))
    start, stop = (int(bound) if bound else None for bound in (found["start"], found["stop"]))
    if (start or 0) < 0 or (stop or 0) < 0:
        return iter(list(rows)[start:stop])
    return itertools.islice(rows, start, stop)


def _all_rows(path: Path) -> Iterator[Row]:
    path = path.expanduser()
    if not path.is_file():
        what = "is a directory, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"prompt file {path} {what}")
    match path.suffix:
        case ".jsonl":
            return _json_lines(path)
        case ".json":
            return _json_array(path)
        case ".parquet":
            return _parquet(path)
        case other:
            raise DataError(
                f"prompt file {path} ends in {other!r}; known are .jsonl, .json and .parquet"
            )


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path}, line {number}"
                yield _row(_parse(line, place), place)


def _json_array(path: Path) -> Iterator[Row]:
    rows = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path} holds one {type(rows).__name__}, not an array of records")
    for number, row in enumerate(cast("list[Any]", rows), 1):
        place = f"{path}, record {number}"
        yield _row(row, place)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with parquet.ParquetFile(path) as file:
            batches: Iterable[Any] = file.iter_batches()
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, 1):
                yield Row(row, f"{path}, row {number}")
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error.msg} at column {error.colno}") from error


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place} is a {type(value).__name__}, not an object with keys")
    return Row(cast("dict[str, Any]", value), place)
