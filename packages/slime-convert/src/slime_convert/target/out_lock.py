"""One conversion at a time writes to an --out.

The lock is the kernel's (``flock``): it ends with the process that holds it, however that ends. The
file that it is on is removed at the end; one that a killed process left locks nothing.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from slime_core.errors import CheckpointError

INSIDE = ".slime-convert.lock"
"""In a directory that is added to."""


def beside(out: Path) -> Path:
    """Return the file to lock for a directory that is replaced as a whole."""
    target = out.resolve()
    return target.with_name(f".{target.name}.lock")


@contextmanager
def sole_writer(out: Path, lock: Path) -> Generator[None]:
    """Own ``out`` until the block ends, by the file ``lock``.

    Raises:
        CheckpointError: another conversion owns it, or nothing can be written there.
    """
    is_new = not lock.parent.exists()
    descriptor = _own(out, lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is free: nobody may lock what is then removed
        os.close(descriptor)
        if is_new:
            with suppress(OSError):  # it holds what was written
                lock.parent.rmdir()


def _own(out: Path, lock: Path) -> int:
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CheckpointError(f"cannot write {out}: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise CheckpointError(
                f"another conversion is writing {out}: wait until it has ended, or choose another "
                "directory"
            ) from error
        except OSError:  # a file system without locks
            return descriptor
        if _is_at(lock, descriptor):
            return descriptor
        os.close(descriptor)  # its owner removed it meanwhile


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
