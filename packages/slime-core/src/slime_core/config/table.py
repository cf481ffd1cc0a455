"""Flags of a foreign parser, read from a generated JSON table instead of the parser itself.

Importing Megatron or SGLang takes seconds to a minute; their flags as data take milliseconds.
``scripts/generate_flag_tables.py`` writes the tables from the real parsers, and a test compares.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slime_core.config.flags import Flag


def _human_int(word: str) -> int:
    """4096, 4k (thousands) or 4Ki (binary), as SGLang writes sizes."""
    for suffix, unit in (("Ki", 2**10), ("Mi", 2**20), ("Gi", 2**30), ("Ti", 2**40)):
        if word.endswith(suffix):
            return int(word.removesuffix(suffix)) * unit
    for suffix, unit in (("k", 10**3), ("m", 10**6), ("g", 10**9), ("t", 10**12)):
        if word.lower().endswith(suffix):
            return int(float(word[:-1]) * unit)
    return int(word)


CONVERTERS: Mapping[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "json": json.loads,
    "size": _human_int,
    "enum": str,
    "raw": str,
}
"""Type names of the tables; ``raw`` words are left for the foreign parser to understand."""


def flags_from_table(text: str, owner: str, *, prefix: str = "") -> list[Flag]:
    """The flags of a table, with ``prefix`` put before their names: --x becomes --prefix-x."""
    return [_flag(row, owner, prefix) for row in json.loads(text)]


def _flag(row: Mapping[str, Any], owner: str, prefix: str) -> Flag:
    type_name = row.get("type", "str")
    choices = row.get("choices")
    return Flag(
        owner=owner,
        dest=row["dest"],
        names=_prefixed(row["names"], prefix),
        negatives=_prefixed(row.get("negatives", ()), prefix),
        arity=row.get("arity", "one"),
        convert=CONVERTERS[type_name],
        type_name=type_name,
        choices=None if choices is None else tuple(choices),
        const=row.get("const", True),
        default=row.get("default"),
        help=row.get("help", ""),
        spelling={"repeat": True} if row.get("repeat") else {},
    )


def _prefixed(names: Sequence[str], prefix: str) -> tuple[str, ...]:
    if not prefix:
        return tuple(names)
    return tuple(f"--{prefix}-{name.removeprefix('--')}" for name in names)
