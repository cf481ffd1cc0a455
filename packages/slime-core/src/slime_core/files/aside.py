"""What is in the way of something new is kept beside it, not written over."""

import itertools
from pathlib import Path


def set_aside(path: Path) -> Path:
    """Rename what is at ``path`` to the first of these names that is free; return that.

    A file's are ``<stem>-1<suffix>``, ``<stem>-2<suffix>``, ..., so that it is opened by the same
    programs; a directory's are ``<name>.1``, ``<name>.2``, ...
    """
    of_directory = path.is_dir()
    names = (
        f"{path.name}.{number}" if of_directory else f"{path.stem}-{number}{path.suffix}"
        for number in itertools.count(1)
    )
    return path.rename(next(free for name in names if not (free := path.with_name(name)).exists()))
