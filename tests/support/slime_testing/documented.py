"""Which metrics the reference page describes."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"
_CODE = re.compile(r"`([a-z]+/[^`]+)`")
_STANDS_FOR = re.compile(r"[A-Z]{1,}")
_AXES = {"step", "time"}


@cache
def documented() -> tuple[str, ...]:
    """The names in the first columns of its tables, as they stand there."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return tuple(name for row in rows for name in _CODE.findall(row.split("|")[1]))


def undocumented(names: Iterable[str]) -> set[str]:
    """Those of ``names`` that no row of it is about."""
    patterns = [_pattern(name) for name in documented()]
    return {
        name
        for name in {*names} - _AXES
        if not any(pattern.fullmatch(name) for pattern in patterns)
    }


@cache
def _pattern(name: str) -> re.Pattern[str]:
    """Capital letters stand for anything."""
    literal = [re.escape(part) for part in _STANDS_FOR.split(name)]
    return re.compile(".+".join(literal))
