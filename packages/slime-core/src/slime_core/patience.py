"""Give others more time than they give themselves, on machines that are busy."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

_PAUSE_S = 0.2


@contextmanager
def patient(module: Any, name: str, error: type[Exception], seconds: float) -> Generator[None]:
    """Within the block, ``module.name`` raises ``error`` only when it did so for ``seconds``.

    For a library that asks itself a question again and again, with a limit that nobody can set.
    Where it has no such function any more, nothing changes.
    """
    function: Callable[..., Any] | None = getattr(module, name, None)
    if function is None:
        yield
        return

    @wraps(function)
    def again(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return function(*args, **kwargs)
            except error:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)

    setattr(module, name, again)
    try:
        yield
    finally:
        setattr(module, name, function)
