"""Whether a disk has room for a checkpoint, asked before hours of writing."""

import shutil
from pathlib import Path

from slime_core.errors import CheckpointError


def check_room(out: Path, num_bytes: int) -> None:
    """Raise ``CheckpointError`` if there is less on the disk where ``out`` is or will be."""
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise CheckpointError(
            f"cannot write {out}: {num_bytes:,} bytes are needed and {free:,} are free on its disk"
        )
