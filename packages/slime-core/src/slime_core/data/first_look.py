"""The first row of a prompt file, so that a wrong name or column costs a second."""

from dataclasses import dataclass

from slime_core.config.algorithm import PreferenceConfig
from slime_core.config.data import DataConfig
from slime_core.data.file_slice import parse
from slime_core.data.pairs import read_pairs
from slime_core.data.prompts import read_prompts
from slime_core.errors import DataError


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What there is to say about a file."""

    problem: str | None = None
    """Why it cannot be used; says its name."""
    gradable: bool = True
    """Whether the prompt comes with a label, or says by itself which reward scores it."""


def first_look(
    path: str, data: DataConfig, preference: PreferenceConfig | None = None
) -> FirstLook:
    """Read one prompt of a file; with ``preference``, one pair of responses."""
    try:
        if not parse(path).path.exists():
            return FirstLook(f"{path}: there is no such file; give a .jsonl or .parquet file")
        if preference is None:
            rows = read_prompts(data, sources=(path,))
        else:
            rows = read_pairs(data, preference, sources=(path,))
        first = next(rows, None)
    except DataError as error:
        return FirstLook(str(error))
    if first is None:
        return FirstLook(f"{path}: has no rows")
    return FirstLook(gradable=first.label is not None or "rm_type" in first.metadata)
