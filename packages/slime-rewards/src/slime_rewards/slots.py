"""How many workers may grade at once."""

import threading
import time

STUCK_S = 0.1
"""A worker busy for longer no longer counts as one: another takes its place."""


class Slots:
    """So many may grade at once; who takes long no longer counts, up to ``most`` in all."""

    def __init__(self, count: int, most: int) -> None:
        self._count = count
        self.most = most
        self._change = threading.Condition()
        self._since: dict[int, float] = {}

    def __enter__(self) -> None:
        with self._change:
            while not self._free():
                self._change.wait(STUCK_S / 3)
            self._since[threading.get_ident()] = time.monotonic()

    def __exit__(self, *_: object) -> None:
        with self._change:
            del self._since[threading.get_ident()]
            self._change.notify()

    def _free(self) -> bool:
        now = time.monotonic()
        quick = sum(now - since < STUCK_S for since in self._since.values())
        return quick < self._count and len(self._since) < self.most
