"""Values of a foreign parser's destinations, written as the words of its command line."""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Literal


def to_words(values: Mapping[str, Any], table: Literal["flags", "router_flags"]) -> list[str]:
    """The command line that makes the parser behind ``table`` store ``values``.

    None is the absence of a flag; a switch that has no negative is left out when False. A flag
    that only a run sets is not in the table and is spelled after its destination.
    """
    rows = _rows(table)
    words: list[str] = []
    for dest, value in values.items():
        words += _one(rows.get(dest) or _plain(dest, value), value)
    return words


def _plain(dest: str, value: Any) -> dict[str, Any]:
    name = "--" + dest.replace("_", "-")
    return {"names": [name], "arity": "none" if isinstance(value, bool) else "one"}


@functools.cache
def _rows(table: str) -> dict[str, dict[str, Any]]:
    text = importlib.resources.files("slime_sglang").joinpath(f"{table}.json").read_text()
    rows: dict[str, dict[str, Any]] = {}
    for row in json.loads(text):
        rows.setdefault(row["dest"], row)
    return rows


def _one(row: Mapping[str, Any], value: Any) -> list[str]:
    name = row["names"][0]
    if value is None:
        return []
    if row.get("arity") == "none":
        return _switch(row, value)
    if isinstance(value, list | tuple):
        return [name, *map(_word, value)]
    if row.get("arity") == "optional" and value == row.get("const", True):
        return [name]
    return [name, _word(value)]


def _switch(row: Mapping[str, Any], value: Any) -> list[str]:
    if value == row.get("const", True):
        return [row["names"][0]]
    return list(row.get("negatives", ()))[:1]


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)
