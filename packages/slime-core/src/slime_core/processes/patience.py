"""Give others more time than they give themselves, on machines that are busy."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from slime_core.errors import SlimeError

_PAUSE_S = 0.2


class StillbornError(SlimeError, ChildProcessError):
    """A process that was to answer has ended before it did."""


class Starting:
    """The processes that a library starts and then waits for."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, Any, str | None]] = []

    def seen(self, start: Callable[..., Any]) -> Callable[..., Any]:
        """``start``, whose result has a ``process`` that is watched from then on."""

        @wraps(start)
        def started(*args: Any, **options: Any) -> Any:
            part = start(*args, **options)
            name = start.__name__.removeprefix("start_")
            log = options.get(f"{name}_stderr_filepath") or options.get("stderr_filepath")
            self._parts.append((name, part.process, log))
            return part

        return started

    def check(self) -> None:
        """Raise ``StillbornError``, which names the log, once one of them has ended."""
        for name, process, log in self._parts:
            if (code := process.poll()) is not None:
                where = f"; its log is {log} and the .out beside it" if log else ""
                raise StillbornError(f"{name} has ended with exit code {code}{where}")


@contextmanager
def patient(
    module: Any,
    name: str,
    error: type[Exception],
    seconds: float,
    check: Callable[[], None] = lambda: None,
) -> Generator[None]:
    """Within the block, ``module.name`` raises ``error`` only when it did so for ``seconds``.

    ``check`` is called after every failure, and raises something else where there is no hope. For
    a library that asks itself a question again and again, with a limit that nobody can set. Where
    it has no such function any more, nothing changes.
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
                check()
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)

    setattr(module, name, again)
    try:
        yield
    finally:
        setattr(module, name, function)
