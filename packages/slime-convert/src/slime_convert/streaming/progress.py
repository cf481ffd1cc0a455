"""Telling how far a conversion is: nobody, or a bar on the standard error if that is a terminal."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

type Progress = Callable[[int], None]
"""Told how many bytes more are done."""


def quiet(_num_bytes: int) -> None:
    """Report no progress."""


@contextmanager
def bar(what: str, total: int) -> Generator[Progress]:
    """Yield what moves a bar that is full after ``total`` bytes."""
    from tqdm import tqdm

    with tqdm(
        total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1000, disable=None
    ) as shown:

        def progress(num_bytes: int) -> None:
            shown.update(num_bytes)

        yield progress
