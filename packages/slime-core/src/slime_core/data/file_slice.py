"""``path@[start:stop]*weight``: which rows of which file, and how often."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from slime_core.errors import DataError

_FORM = re.compile(
    r"(?P<path>.+?)(?:@\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?(?:\*(?P<weight>\d+(?:\.\d+)?))?"
)


@dataclass(frozen=True, slots=True)
class FileSlice:
    """A file or folder, the bounds of a Python slice of its rows, and how often they are seen."""

    path: Path
    start: int | None = None
    stop: int | None = None
    weight: float = 1.0
    """How often an epoch sees each row; of a fraction, other rows in every epoch."""

    @property
    def num_passes(self) -> int:
        """How often an epoch goes through the rows; the last time it may leave some out."""
        return math.ceil(self.weight)

    def sees(self, row: int, *, number: int, epoch: int) -> bool:
        """Whether pass ``number`` of ``epoch`` takes the row.

        Of a pass of which a fraction f is left, it takes row i in epoch e where
        floor(f (i + e + 1)) > floor(f (i + e)): f of the rows, and each row in f of the epochs.
        """
        part = self.weight - number
        return part >= 1 or math.floor(part * (row + epoch + 1)) > math.floor(part * (row + epoch))

    def epoch_len(self, num_rows: int) -> int:
        """Rows of an epoch, of a file with ``num_rows`` in the slice; exact to one row."""
        return round(self.weight * num_rows)


def parse(spec: str) -> FileSlice:
    """What the value of --prompt-data means."""
    found = _FORM.fullmatch(spec)
    if found is None or "@[" in found["path"]:
        raise DataError(
            f"prompt file {spec}: rows are chosen with PATH@[START:STOP], numbers or nothing in "
            "place of START and STOP, and weighted with *NUMBER after that"
        )
    weight = float(found["weight"] or 1)
    if not weight:
        raise DataError(f"prompt file {spec}: a weight of 0 reads nothing: leave the file out")
    start, stop = (int(bound) if bound else None for bound in (found["start"], found["stop"]))
    return FileSlice(Path(found["path"]).expanduser(), start, stop, weight)
