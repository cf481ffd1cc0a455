"""The first rows of a prompt file, so that a wrong name, column or value costs a second."""

from dataclasses import dataclass

from slime_core.config.algorithm import PreferenceConfig
from slime_core.config.data import DataConfig
from slime_core.data.file_slice import parse
from slime_core.data.loading import look
from slime_core.data.pairs import pair_rows
from slime_core.data.prompts import is_gradable, prompt_rows
from slime_core.errors import DataError

_NUM_ROWS = 100


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What there is to say about a file."""

    problem: str | None = None
    """Why it cannot be used; says its name."""
    gradable: bool = True
    """Whether the first prompt comes with a label, or says by itself which reward scores it."""


def first_look(
    path: str,
    data: DataConfig,
    preference: PreferenceConfig | None = None,
    *,
    answered: bool = False,
) -> FirstLook:
    """Read the first prompts of a file; with ``preference``, pairs of responses.

    ``answered``: they have to hold what is learnt from them.
    """
    try:
        if not parse(path).path.exists():
            return FirstLook(f"{path}: there is no such file; give a .jsonl or .parquet file")
        rows = prompt_rows(data, answered=answered)
        reader = rows if preference is None else pair_rows(data, preference)
        found = look(reader, data, path, num_rows=_NUM_ROWS)
    except DataError as error:
        return FirstLook(str(error))
    return FirstLook(gradable=is_gradable(found[0])) if found else FirstLook(f"{path}: has no rows")
