"""Whether something can be written at a path, without writing anything."""

import os
from pathlib import Path


def obstacle(path: Path) -> str | None:
    """Why neither a file nor a directory can be made at ``path``, or None.

    Directories above it that are missing count as made. Asking may leave out what only writing
    shows, such as a full disk.
    """
    for above in path.absolute().parents:
        if above.is_dir():
            return None if os.access(above, os.W_OK | os.X_OK) else f"{above} cannot be written to"
        if above.is_symlink() or above.exists():
            return f"{above} is no directory"
    return None
