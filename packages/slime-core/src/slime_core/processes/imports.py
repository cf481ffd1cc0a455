"""Import a large library without what it looks for and this process does not use."""

import importlib.metadata
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager


@contextmanager
def lean(*unneeded: str) -> Generator[None]:
    """Import inside the block as if packages ``unneeded`` were not installed.

    Those that are imported already are hidden too, and come back. Libraries that ask which
    distribution a package belongs to are answered by ``packages_distributions``.
    """
    there = {name: sys.modules[name] for name in [*sys.modules] if name.split(".")[0] in unneeded}
    sys.modules.update(dict.fromkeys([*unneeded, *there]))  # pyright: ignore[reportArgumentType, reportCallIssue]
    asked = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = packages_distributions
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = asked
        for name in unneeded:
            sys.modules.pop(name, None)
        sys.modules.update(there)


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
