"""Rows of prompt files, each with the place it came from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from slime_core.data.faults import RowError
from slime_core.data.file_slice import FileSlice, parse
from slime_core.data.folders import open_path
from slime_core.data.formats import JsonLines, Mark, Record


@dataclass(frozen=True, slots=True)
class Row:
    """One record and where to find it, for error messages."""

    values: dict[str, Any]
    place: str


class Place(NamedTuple):
    """A place between two rows of a source, to go on from."""

    file: int = 0
    mark: Mark = Mark()
    row: int = 0
    """Rows of all files before it."""


class Source:
    """The rows that ``path@[start:stop]`` names; bounds are those of Python slices."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.slice: FileSlice = parse(spec)
        self._files = open_path(self.slice.path)
        self._bounds: tuple[int, int | None] | None = None

    def __len__(self) -> int:
        """Rows in the slice; counted by reading all files once, without looking into rows."""
        rows = range(sum(file.count() for file in self._files))
        return len(rows[self.slice.start : self.slice.stop])

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.path.stat().st_size for file in self._files)

    @property
    def first(self) -> int:
        """The number of the first row in the slice, from 0."""
        return self._resolved()[0]

    def records(self, place: Place | None = None) -> Iterator[tuple[Record, Place]]:
        """Records behind ``place`` (default: all of the slice), each with the place after it."""
        start, stop = self._resolved()
        file, mark, row = place or self._skip(start)
        for number in range(file, len(self._files)):
            for record, after in self._files[number].records(mark):
                if stop is not None and row >= stop:
                    return
                row += 1
                if row > start:
                    yield record, Place(number, after, row)
            mark = Mark()

    def _resolved(self) -> tuple[int, int | None]:
        """Bounds that are not negative."""
        if self._bounds is None:
            start, stop = self.slice.start or 0, self.slice.stop
            if start < 0 or (stop or 0) < 0:
                total = sum(file.count() for file in self._files)
                start, stop, _ = slice(start, stop).indices(total)
            self._bounds = start, stop
        return self._bounds

    def _skip(self, start: int) -> Place:
        """A place at or before row ``start``, as near as is known without reading lines."""
        number, row = 0, 0
        while start and number + 1 < len(self._files):
            count = self._files[number].count()
            if row + count > start:
                break
            row += count
            number += 1
        if isinstance(self._files[number], JsonLines):
            return Place(number, Mark(), row)
        return Place(number, Mark(start - row), start)


def read_rows(spec: str) -> Iterator[dict[str, Any]]:
    """The records of ``path@[start:stop]``; raises at the first that is none."""
    return (row.values for row in numbered_rows(spec))


def numbered_rows(spec: str) -> Iterator[Row]:
    """``read_rows`` with the place of each record."""
    return (row_of(record) for record, _ in Source(spec).records())


def epoch_len(spec: str) -> int:
    """Rows that one epoch takes of the source ``spec``."""
    source = Source(spec)
    return source.slice.epoch_len(len(source))


def row_of(record: Record) -> Row:
    """The record by name of column.

    Raises:
        RowError: it is no object, or not even JSON or UTF-8.
    """
    if record.problem is not None:
        raise RowError("malformed", f"{record.place} {record.problem}")
    values = record.values if record.line is None else _parse(record.line, record)
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise RowError("malformed", f"{record.place} is of type {kind}, not an object with keys")
    return Row(cast("dict[str, Any]", values), record.place)


def _parse(line: bytes, record: Record) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig" if record.number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        at = f"byte {line[error.start]:#04x} at column {error.start + 1}"
        raise RowError("not_utf8", f"{record.place} is not UTF-8: {at}") from error
    except json.JSONDecodeError as error:
        what = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise RowError("malformed", f"{record.place} is not JSON: {what}") from error
    except RecursionError as error:
        raise RowError("malformed", f"{record.place} is nested too deeply") from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise RowError("malformed", f"{record.place} is not read: {error}") from error
