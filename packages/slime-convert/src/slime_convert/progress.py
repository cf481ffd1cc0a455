"""A progress bar on the standard error, where that is a terminal."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bar(what: str, total: int) -> Generator[Callable[[int], None]]:
    """Yield a function that is told how many bytes more are done."""
    with tqdm(
        total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1000, disable=None
    ) as shown:

        def progress(num_bytes: int) -> None:
            shown.update(num_bytes)

        yield progress
