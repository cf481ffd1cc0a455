"""Have a library that offers no setting for it do something else for a while."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(module: Any, **values: Any) -> Generator[None]:
    """Within the block, ``module`` has other values; names that it does not have stay unknown."""
    before = {name: getattr(module, name) for name in values if hasattr(module, name)}
    for name in before:
        setattr(module, name, values[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def answer(value: Any) -> Callable[..., Any]:
    """A function that returns ``value``, whatever it is given."""

    def answered(*_args: Any, **_options: Any) -> Any:
        return value

    return answered
