"""Text files that are no rows of text at all: told once, not row by row."""

import json
import os
from pathlib import Path
from typing import BinaryIO

from slime_core.errors import DataError

_UTF8_MARK = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n"
_LAST_BYTES = 4096


def check_encoding(path: Path) -> None:
    """Raise ``DataError`` where the first bytes show UTF-16 or UTF-32."""
    with path.open("rb") as file:
        first = file.read(4)
    # JSON's own rule: a byte order mark, or zeros beside the first character.
    name = json.detect_encoding(first)[:6].upper()
    if name in ("UTF-16", "UTF-32") and any(first):
        raise DataError(
            f"{path} is {name}, as its first bytes say, and prompt files are UTF-8: save it as "
            f"UTF-8, for instance with iconv -f {name} -t UTF-8"
        )


def check_lines(path: Path) -> None:
    """Raise ``DataError`` where the lines of a .jsonl file are those of one JSON array."""
    with path.open("rb") as file:
        if _is_array(file):
            raise DataError(
                f"{path} holds one JSON array, not an object on every line: rename it to "
                f"{path.with_suffix('.json').name}, which is read as an array of objects"
            )


def _is_array(file: BinaryIO) -> bool:
    """Whether a bracket goes around all lines; lists on every line are not that."""
    first = next((line for line in file if line.strip()), b"").removeprefix(_UTF8_MARK)
    if not first.lstrip(_BLANKS).startswith(b"["):
        return False
    behind = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(max(behind, size - _LAST_BYTES))
    last = file.read().rstrip(_BLANKS)
    closed = first.rstrip(_BLANKS).endswith(b"]")
    return last.endswith(b"]") and not closed if last else closed
