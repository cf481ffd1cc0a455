"""Import a large library without what it looks for and this process does not use."""

import importlib.metadata
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager


@contextmanager
def lean(*unneeded: str) -> Generator[None]:
    """Import inside the block as if packages ``unneeded`` were not installed.

    Those that are imported already stay. Libraries that ask which distribution a package belongs
    to are answered by ``packages_distributions``.
    """
    hidden = [name for name in unneeded if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # pyright: ignore[reportArgumentType, reportCallIssue]
    asked = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = packages_distributions
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = asked
        for name in hidden:
            sys.modules.pop(name, None)


def packages_distributions() -> dict[str, list[str]]:
    """What ``importlib.metadata.packages_distributions`` says, which looks for every single file.

    transformers asks as it is imported, and a hundred thousand files take seconds.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for distribution in importlib.metadata.distributions():
        for package in dict.fromkeys(_packages(distribution)):
            found[package].append(distribution.metadata["Name"])
    return dict(found)


def _packages(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    if declared := (distribution.read_text("top_level.txt") or "").split():
        yield from declared
        return
    for line in (distribution.read_text("RECORD") or "").splitlines():
        first = line.strip('"').split(",", 1)[0].split("/", 1)[0]
        name = first.split(".", 1)[0] if "/" not in line.split(",", 1)[0] else first
        if name.isidentifier():
            yield name
