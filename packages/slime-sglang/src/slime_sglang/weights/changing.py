"""A receiver whose engines may change between publishes."""

from collections.abc import Callable, Sequence
from typing import Protocol

from slime_core.interfaces import Metrics, WeightReceiver
from torch import Tensor


class ClosableReceiver(WeightReceiver, Protocol):
    """A transport's receiver."""

    def close(self) -> None:
        """Drop the connections."""
        ...


class ChangingReceiver:
    """``WeightReceiver`` that is made for the engines there are when a publish begins."""

    def __init__(self, make: Callable[[], ClosableReceiver]) -> None:
        self._make = make
        self._receiver: ClosableReceiver | None = None

    def change(self) -> None:
        """The next publish is to other engines."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()

    def begin(self, version: int) -> None:
        """Have the engines pause."""
        if self._receiver is None:
            self._receiver = self._make()
        self._receiver.begin(version)

    def send(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Hand over one bucket."""
        assert self._receiver is not None, "begin() comes first"
        self._receiver.send(tensors)

    def commit(self) -> Metrics:
        """Set the version and resume."""
        assert self._receiver is not None, "begin() comes first"
        return self._receiver.commit()
