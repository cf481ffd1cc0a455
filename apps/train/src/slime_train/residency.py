"""Who occupies the devices while the other side works."""

from collections.abc import Generator
from contextlib import contextmanager


class SideBySide:
    """Trainer and engines keep what they hold: separate devices, or one that fits both."""

    @contextmanager
    def training(self) -> Generator[None]:
        """Nothing to move."""
        yield

    @contextmanager
    def publishing(self) -> Generator[None]:
        """Nothing to move."""
        yield
