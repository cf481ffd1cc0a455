"""Waiting for a descriptor, whatever its number is."""

import math
import select
from typing import Protocol

_LONGEST_S = 1e6
"""Eleven days; ``poll`` takes no more than about twice that."""


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def readable(source: "_HasDescriptor | int", seconds: float) -> bool:
    """Whether there is something to read, or the end of it, within ``seconds``.

    ``select.select`` refuses descriptors from 1024 on, and a rollout has more connections than
    that; ``poll`` takes them all.
    """
    poller = select.poll()
    poller.register(source, select.POLLIN)
    return bool(poller.poll(math.ceil(min(max(0.0, seconds), _LONGEST_S) * 1000)))
