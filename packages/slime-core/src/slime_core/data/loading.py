"""Whole files of prompts, read before the run."""

import logging
from collections.abc import Iterable, Iterator, Sequence

from slime_core.config.data import DataConfig
from slime_core.data.ahead import ReadAhead
from slime_core.data.faults import DUPLICATE_ID, TOO_LONG, Faults
from slime_core.data.formats import Record
from slime_core.data.reading import (
    Job,
    Outcome,
    Prompt,
    RowReader,
    find_columns,
    named,
    open_sources,
)
from slime_core.data.rows import Source
from slime_core.errors import DataError

logger = logging.getLogger(__name__)

Read = tuple[str, Record, Outcome]
"""Source, record, and what it turned out to be."""


def read(reader: RowReader, data: DataConfig, *, sources: Sequence[str]) -> Iterator[Prompt]:
    """Prompts, not prepared; rows that cannot be used are complained of behind the last."""
    opened = open_sources(sources)
    job = Job(reader, find_columns(reader, opened), data.id_key)
    books = _Books(data, opened)
    for source, record in _records(opened):
        outcome = job.do(source, record, prepare=False)
        if prompt := books.kept((source, record, outcome)):
            yield prompt
    books.settle()


def load(reader: RowReader, data: DataConfig, *, sources: Sequence[str]) -> list[Prompt]:
    """Prepared prompts of all sources in order; at least one.

    Raises:
        DataError: naming the first rows that cannot be used, or nothing is left.
    """
    opened = open_sources(sources)
    job = Job(reader, find_columns(reader, opened), data.id_key)
    books = _Books(data, opened)
    prompts: list[Prompt] = []
    with ReadAhead(job, data.num_data_workers) as ahead:
        for (source, record), outcome in ahead.run(_records(opened), lambda pair: pair):
            if prompt := books.kept((source, record, outcome)):
                prompts.append(prompt)
    books.settle()
    if not prompts:
        raise DataError(f"no prompts in {', '.join(sources)}: {books.why_none()}")
    return prompts


def look(reader: RowReader, data: DataConfig, source: str, *, num_rows: int) -> list[Prompt]:
    """Prompts, not prepared, of a source's first rows, and of more where none of those can be used.

    Raises:
        DataError: naming the first rows that cannot be used, or, where such rows are left out, that
            none can.
    """
    opened = open_sources([source])
    job = Job(reader, find_columns(reader, opened), data.id_key)
    faults, prompts, num_read, rest = Faults("stop"), list[Prompt](), 0, False
    for name, record in _records(opened):
        if rest := num_read >= num_rows and bool(prompts or data.data_error_policy == "stop"):
            break
        num_read += 1
        outcome = job.do(name, record, prepare=False)
        if outcome.prompt is None:
            faults.add(outcome.kind, outcome.message)
        else:
            prompts.append(outcome.prompt)
    if not prompts or data.data_error_policy == "stop":
        faults.settle(num_read=None if prompts and rest else num_read)
    return prompts


def check(job: Job, data: DataConfig, sources: Sequence[Source]) -> dict[str, int]:
    """Look into every row without keeping any; how many there are in each source.

    Raises:
        DataError: naming the first rows that cannot be used.
    """
    faults = Faults(data.data_error_policy)
    counts = {source.spec: 0 for source in sources}
    num_read = 0
    for num_read, (source, record) in enumerate(_records(sources), 1):
        counts[source] += 1
        outcome = job.do(source, record, prepare=False)
        if outcome.prompt is None:
            faults.add(outcome.kind, outcome.message)
        if not num_read % 1_000_000:
            logger.info("%d rows checked; --data-error-policy skip starts without", num_read)
    for source in (source for source, number in counts.items() if not number):
        faults.add("empty", f"{source} has no rows")
    faults.settle(num_read=num_read)
    return counts


def _records(sources: Sequence[Source]) -> Iterator[tuple[str, Record]]:
    return ((source.spec, record) for source in sources for record, _ in source.records())


class _Books:
    """What was read: the prompts among it, and complaints of the rest."""

    def __init__(self, data: DataConfig, sources: Iterable[Source]) -> None:
        self._num_rows = dict.fromkeys((source.spec for source in sources), 0)
        self._faults = Faults(data.data_error_policy)
        self._ids: dict[str, dict[str, int]] = {source: {} for source in self._num_rows}
        self._on_duplicate = data.data_duplicate_ids
        self._duplicates = Faults(
            "stop" if data.data_duplicate_ids == "stop" else "skip",
            f"rows of one file have the same {data.id_key!r}: name them apart, or choose with "
            "--data-duplicate-ids",
        )

    def kept(self, read: Read) -> Prompt | None:
        """The prompt, if it is one to keep."""
        source, record, outcome = read
        self._num_rows[source] += 1
        if outcome.prompt is None:
            self._faults.add(outcome.kind, outcome.message)
            return None
        if outcome.row_id is not None and self._repeats(source, record, outcome.row_id):
            return None
        return named(outcome.prompt, source, len(self._num_rows))

    def settle(self) -> None:
        """Complain of the whole, once."""
        for source, number in self._num_rows.items():
            if not number:
                self._faults.add("empty", f"{source} has no rows")
        total = sum(self._num_rows.values())
        if total or len(self._num_rows) > 1:
            self._faults.settle(num_read=total)
        if self._on_duplicate != "keep":
            self._duplicates.settle(num_read=total)
        elif found := self._duplicates.counts.total():
            named = "; ".join(self._duplicates.named[DUPLICATE_ID])
            logger.warning("%d of %d rows repeat an id and are kept: %s", found, total, named)

    def why_none(self) -> str:
        """Where not one prompt was kept."""
        total, counts = sum(self._num_rows.values()), self._faults.counts
        if not total:
            return "there are no rows"
        if counts[TOO_LONG] == total:
            first = self._faults.named[TOO_LONG][0]
            return f"all {total} are too long: raise the limit ({first})"
        return f"all {total} were left out, {dict(counts)}"

    def _repeats(self, source: str, record: Record, row_id: str) -> bool:
        """Whether the row is to be left out for its name."""
        first = self._ids[source].setdefault(row_id, record.number)
        if first == record.number:
            return False
        message = f"{record.place}: id {row_id!r} is that of {first}"
        self._duplicates.add(DUPLICATE_ID, message)
        return self._on_duplicate == "skip"
