"""One row into one prompt, and what a file's columns are for."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from slime_core.data.faults import RowError
from slime_core.data.formats import Record
from slime_core.data.rows import Row, Source, row_of
from slime_core.errors import DataError

logger = logging.getLogger(__name__)

_NUM_LOOKED_AT = 100


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt file; read once, copied into samples."""

    prompt: str | list[dict[str, Any]]
    """Text for the model, or messages where no chat template was applied."""
    label: Any = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    tokens: tuple[int, ...] | None = None
    """Ids of a prompt that is text."""
    source: str = ""
    """Which of several files it is from, as given with --prompt-data."""


@runtime_checkable
class RowReader(Protocol):
    """How rows become prompts; can be sent to other processes."""

    def columns(self, row: Row) -> Any:
        """Which columns of the file hold what, as far as one row shows."""
        ...

    def read(self, row: Row, columns: Any) -> Prompt:
        """The prompt, checked but not rendered; raises ``RowError``."""
        ...

    def prepare(self, prompt: Prompt, place: str) -> Prompt:
        """The prompt as samples have it; raises ``RowError``."""
        ...


class Outcome(NamedTuple):
    """What a row turned out to be: a prompt, or a problem of some kind."""

    prompt: Prompt | None
    kind: str = ""
    message: str = ""
    row_id: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A reader, and what it has seen of each source."""

    reader: RowReader
    columns: Mapping[str, Any]
    id_key: str

    def do(self, source: str, record: Record, *, prepare: bool = True) -> Outcome:
        """Read one record."""
        try:
            row = row_of(record)
            prompt = self.reader.read(row, self.columns[source])
            if prepare:
                prompt = self.reader.prepare(prompt, row.place)
        except RowError as error:
            return Outcome(None, error.kind, str(error))
        row_id = row.values.get(self.id_key)
        return Outcome(prompt, row_id=None if row_id is None else str(row_id))


def find_columns(reader: RowReader, sources: Iterable[Source]) -> dict[str, Any]:
    """Of each source, the columns that its first usable row shows; said in the log."""
    found: dict[str, Any] = {}
    for source in sources:
        for record, _ in itertools.islice(source.records(), _NUM_LOOKED_AT):
            try:
                row = row_of(record)
                columns = reader.columns(row)
                found.setdefault(source.spec, columns)
                reader.read(row, columns)
            except RowError:
                continue
            found[source.spec] = columns
            break
        logger.info("%s: %s", source.spec, found.setdefault(source.spec, None))
    return found


def open_sources(specs: Sequence[str]) -> list[Source]:
    """The files behind --prompt-data; each may be named once for the same rows."""
    if len(set(specs)) != len(specs):
        raise DataError("--prompt-data names a file twice: weight it instead, as in FILE*2")
    return [Source(spec) for spec in specs]


def named(prompt: Prompt, source: str, num_sources: int) -> Prompt:
    """``prompt`` with its source, where there are several or it is weighted."""
    if num_sources == 1 and "*" not in source:
        return prompt
    return Prompt(prompt.prompt, prompt.label, prompt.metadata, prompt.tokens, source)
