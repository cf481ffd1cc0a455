"""What is in the way of something new is kept beside it, not written over."""

import itertools
from pathlib import Path


def set_aside(path: Path) -> Path:
    """Rename what is at ``path`` to the first of these names that is free; return that.

    A file's are ``<stem>-1<suffix>``, ``<stem>-2<suffix>``, ..., so that it is opened by the same
    programs; a directory's are ``<name>.1``, ``<name>.2``, ...
    """
    of_directory = path.is_dir()
    for number in itertools.count(1):
        name = f"{path.name}.{number}" if of_directory else f"{path.stem}-{number}{path.suffix}"
        if not (other := path.with_name(name)).exists():
            return path.rename(other)
    raise AssertionError("numbers do not end")
