"""Show the rows of a drill, and keep them."""

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slime_core.drill.tries import Row

FILE_NAME = "drill.json"
_HEAD = (
    *("process", "signal", "phase", "ended", "detected s", "recovered s"),
    *("lost", "twice", "other tokens", "weights"),
)
_WEIGHTS = {True: "equal", False: "differ", None: "-"}
_WIDEST = 48
_VERSIONS = ("slime-core", "torch", "megatron-core", "sglang", "ray")


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines: one row for each disturbed run, in columns."""
    cells = [list(_HEAD), *map(shown, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (word.ljust(width) for word, width in zip(line, widths, strict=True))
        yield "  ".join(padded).rstrip()


def shown(row: Row) -> list[str]:
    """The words of one line."""
    numbers = (
        *(row.detected_s, row.recovered_s),
        *(row.samples_lost, row.samples_duplicated, row.samples_with_other_tokens),
    )
    words = ("-" if number is None else f"{number:g}" for number in numbers)
    head = (row.kind, row.fault, row.phase, row.ended[:_WIDEST])
    return [*head, *words, _WEIGHTS[row.weights_equal]]


def write(path: Path, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the rows with what they were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus = len(os.sched_getaffinity(0))
    document = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"cpus": cpus, "memory_gib": round(memory / 2**30, 1)},
        "versions": {name: _version(name) for name in _VERSIONS},
        "settings": dict(settings),
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> list[Row]:
    """The rows that were written; none when there is no file."""
    if not path.exists():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    return [Row(**values) for values in document["rows"]]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
