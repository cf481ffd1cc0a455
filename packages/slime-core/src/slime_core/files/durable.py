"""Make files survive a crash: on disk before anything says they are there.

A file's content and its name are made durable separately: by syncing the file, and by syncing the
directory that holds the name. Nothing here imports torch.
"""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Force a file's content, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Force everything below ``directory``, and its own names, to disk."""
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)


def replace_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader, or a crash, finds the old content or the new."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    sync(new)
    new.replace(path)
    sync(path.parent)
