"""Files of records, read lazily and from any place: jsonl, json, csv, tsv, parquet, arrow."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from slime_core.data.text_form import check_encoding, check_lines
from slime_core.errors import DataError

_ROWS_AT_ONCE = 1024
_LARGEST_FIELD = 1 << 30


class Mark(NamedTuple):
    """A place between two records of a file."""

    record: int = 0
    """Records before it."""
    byte: int = 0
    line: int = 0


class Record(NamedTuple):
    """One record, not looked into yet: a line of JSON, or values."""

    path: str
    number: int
    """Line or row, from 1."""
    line: bytes | None = None
    values: Any = None
    problem: str | None = None
    """Why there are neither."""
    by_line: bool = False

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.path}:{self.number}" if self.by_line else f"{self.path}, row {self.number}"


@runtime_checkable
class DataFile(Protocol):
    """One file of records."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    def records(self, mark: Mark) -> Iterator[tuple[Record, Mark]]:
        """The records behind ``mark``, each with the place after it."""
        ...

    def count(self) -> int:
        """How many records there are."""
        ...


@dataclass(frozen=True, slots=True)
class JsonLines:
    """A JSON object on every line; blank lines are no records."""

    path: Path

    def records(self, mark: Mark) -> Iterator[tuple[Record, Mark]]:
        """Lines as bytes: what is wrong with one is found when it is used."""
        name = str(self.path)
        record, byte, line = mark
        with self.path.open("rb") as file:
            file.seek(byte)
            for text in file:
                line += 1
                byte += len(text)
                if text.strip():
                    record += 1
                    yield Record(name, line, line=text, by_line=True), Mark(record, byte, line)

    def count(self) -> int:
        """Lines that are not blank."""
        with self.path.open("rb") as file:
            return sum(1 for line in file if line.strip())


@dataclass(frozen=True, slots=True)
class JsonArray:
    """One JSON array of objects, or an object that has it under "data"; read whole."""

    path: Path

    def records(self, mark: Mark) -> Iterator[tuple[Record, Mark]]:
        """Elements of the array."""
        for number, values in enumerate(self._read()[mark.record :], mark.record + 1):
            yield Record(str(self.path), number, values=values), Mark(number)

    def count(self) -> int:
        """Elements of the array."""
        return len(self._read())

    def _read(self) -> list[Any]:
        try:
            content: Any = json.loads(self.path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is not UTF-8: {error}") from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.path}:{error.lineno} is not JSON: {error.msg.removesuffix(' at')} at "
                f"column {error.colno}; "
                "a file with one object on every line is called .jsonl"
            ) from error
        except RecursionError as error:
            raise DataError(f"{self.path} is nested too deeply") from error
        except ValueError as error:  # an integer of more digits than Python reads
            raise DataError(f"{self.path} is not read: {error}") from error
        rows: Any = cast("dict[str, Any]", content).get("data") if _is_dict(content) else content
        if not isinstance(rows, list):
            raise DataError(
                f"{self.path} holds one {type(content).__name__}, neither an array of records nor "
                'an object {"data": [...]}'
            )
        return cast("list[Any]", rows)


@dataclass(frozen=True, slots=True)
class Csv:
    """Text columns under a line of their names."""

    path: Path
    delimiter: str = ","

    def records(self, mark: Mark) -> Iterator[tuple[Record, Mark]]:
        """Rows by name of column; a field may go over several lines."""
        csv.field_size_limit(_LARGEST_FIELD)
        # What is not UTF-8 becomes surrogates, so that one such field does not end the reading.
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            names: list[str] | None = None
            number = 0
            while True:
                line = reader.line_num + 1
                try:
                    fields = next(reader, None)
                    problem = None
                except csv.Error as error:
                    fields, problem = [], f"is not CSV: {error}"
                if fields is None:
                    return
                if names is None:
                    names = fields
                elif fields or problem:
                    number += 1
                    if number > mark.record:
                        yield self._record(line, names, fields, problem), Mark(number)

    def count(self) -> int:
        """Rows without the line of names."""
        return sum(1 for _ in self.records(Mark()))

    def _record(
        self, line: int, names: list[str], fields: list[str], problem: str | None
    ) -> Record:
        if problem is None and len(fields) != len(names):
            problem = f"has {len(fields)} fields, and there are {len(names)} columns"
        values = dict(zip(names, fields, strict=False))
        return Record(str(self.path), line, values=values, problem=problem, by_line=True)


@dataclass(frozen=True, slots=True)
class Parquet:
    """A parquet file, read in pieces; groups of rows before the first wanted one are not read."""

    path: Path

    def records(self, mark: Mark) -> Iterator[tuple[Record, Mark]]:
        """Rows as dictionaries."""
        pyarrow, _, _ = _arrow(self.path)
        with self._open() as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            first, number = 0, 0
            while first < len(sizes) and number + sizes[first] <= mark.record:
                number += sizes[first]
                first += 1
            groups = range(first, len(sizes))
            try:
                batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=list(groups))
                yield from _rows_behind(self.path, batches, number, mark.record)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{self.path} is a damaged parquet file: {error}") from error

    def count(self) -> int:
        """As the end of the file says."""
        with self._open() as file:
            return int(file.metadata.num_rows)

    def _open(self) -> Any:
        pyarrow, parquet, _ = _arrow(self.path)
        try:
            return parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} is not a readable parquet file: {error}") from error


@dataclass(frozen=True, slots=True)
class Arrow:
    """An arrow file, as ``datasets`` writes it; mapped into memory, not read into it."""

    path: Path

    def records(self, mark: Mark) -> Iterator[tuple[Record, Mark]]:
        """Rows as dictionaries."""
        number = 0
        for batch in self._batches():
            if number + batch.num_rows <= mark.record:
                number += batch.num_rows
                continue
            pieces = (
                batch.slice(start, _ROWS_AT_ONCE)
                for start in range(0, batch.num_rows, _ROWS_AT_ONCE)
            )
            yield from _rows_behind(self.path, pieces, number, mark.record)
            number += batch.num_rows

    def count(self) -> int:
        """Rows of all batches."""
        return sum(batch.num_rows for batch in self._batches())

    def _batches(self) -> Iterator[Any]:
        pyarrow, _, ipc = _arrow(self.path)
        try:
            with pyarrow.memory_map(str(self.path)) as source:
                try:
                    batches: Iterable[Any] = ipc.open_stream(source)
                except pyarrow.ArrowInvalid:
                    file = ipc.open_file(source)
                    batches = (file.get_batch(i) for i in range(file.num_record_batches))
                yield from batches
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} is not a readable arrow file: {error}") from error


def _rows_behind(
    path: Path, batches: Iterable[Any], number: int, first: int
) -> Iterator[tuple[Record, Mark]]:
    """Rows of ``batches``, the first of which is row ``number``, from row ``first`` on."""
    for batch in batches:
        if number + batch.num_rows > first:
            for at, values in enumerate(batch.to_pylist(), number + 1):
                if at > first:
                    yield Record(str(path), at, values=values), Mark(at)
        number += batch.num_rows


def _arrow(path: Path) -> tuple[Any, Any, Any]:
    """The parts of pyarrow, which only these formats need."""
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise DataError(f"{path} is read with pyarrow: install pyarrow") from error
    return pyarrow, parquet, ipc


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _tsv(path: Path) -> Csv:
    return Csv(path, "\t")


_FORMATS: dict[str, Callable[[Path], DataFile]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonArray,
    ".csv": Csv,
    ".tsv": _tsv,
    ".parquet": Parquet,
    ".arrow": Arrow,
}
KNOWN = ", ".join(_FORMATS)


def is_known(path: Path) -> bool:
    """Whether the name ends like a file of records."""
    return path.suffix.lower() in _FORMATS


def open_file(path: Path) -> DataFile:
    """By the end of the name; of text, the first line is looked at, and no row is read yet.

    Raises:
        DataError: there is none, of no known kind, or all of its text is of another form.
    """
    if not path.is_file():
        raise DataError(f"prompt file {path} does not exist")
    if not is_known(path):
        raise DataError(f"prompt file {path} ends in {path.suffix!r}; known are {KNOWN}")
    file = _FORMATS[path.suffix.lower()](path)
    if isinstance(file, JsonLines | JsonArray | Csv):
        check_encoding(path)
    if isinstance(file, JsonLines):
        check_lines(path)
    return file
