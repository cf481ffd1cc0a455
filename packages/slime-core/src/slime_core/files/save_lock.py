"""One run at a time saves into a directory.

The lock is the kernel's (``flock``): it ends with the process that holds it, however that ends.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from slime_core.errors import CheckpointError

logger = logging.getLogger(__name__)

LOCK = ".slime-train.lock"
"""Stays in the directory; what it holds is only read while somebody has it locked."""


@contextmanager
def sole_writer(save: str | None) -> Generator[None]:
    """Own --save until the block ends; no other process that asks for it can begin.

    Raises:
        CheckpointError: another run saves there, or nothing can be written there.
    """
    if save is None:
        yield
        return
    try:
        Path(save).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(Path(save) / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CheckpointError(f"--save {save} cannot be written to: {error}") from error
    try:
        _lock(descriptor, save)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, save: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        raise CheckpointError(
            f"--save {save} belongs to another run that has not ended: {holder or 'unknown'}. "
            "Wait for it, end it, or give this run a directory of its own with --save"
        ) from error
    except OSError as error:
        logger.warning("--save %s cannot be locked (%s): start no second run there", save, error)
        return
    told = f"pid {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, told.encode(), 0)
