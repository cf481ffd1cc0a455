"""Errors of code that a process of the run was given, told as whoever wrote it wants to read them.

The same code fails again where it is tried again: none of this is a loss that a run recovers from.
"""

import logging
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slime_core.errors import SampleError, SlimeError

logger = logging.getLogger(__name__)

_MOST_FRAMES = 12
_STANDARD = Path(sysconfig.get_path("stdlib"))


class MistakeError(SlimeError, ValueError):
    """Code raised what only a change of it helps against; the message says what and where."""


def told(error: BaseException) -> str:
    """Type and message, and ``where``; of a ``SlimeError`` the message, which says all."""
    if isinstance(error, SlimeError):
        return str(error)
    head = "".join(traceback.format_exception_only(error)).strip()
    return f"{head}\n{where(error)}".rstrip()


def where(error: BaseException) -> str:
    """The lines that led to an error, from the user's first one on if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if _is_users(frame.filename)), 0)
    return "".join(traceback.format_list(frames[first:][-_MOST_FRAMES:])).rstrip()


def _is_users(filename: str) -> bool:
    """Whether a file is neither slime's nor Python's nor an installed library's."""
    path = Path(filename)
    if filename.startswith("<") or "site-packages" in path.parts:
        return False
    return not any(path.is_relative_to(place) for place in (_STANDARD, *_own_packages()))


def _own_packages() -> list[Path]:
    """Where slime's packages lie, as far as this process has imported them.

    Other threads may be importing: ``sys.modules`` is copied before anything else is done.
    """
    modules = [
        module for name, module in [*sys.modules.items()] if re.fullmatch(r"slime_\w+", name)
    ]
    files = [module.__file__ for module in modules]
    return [Path(file).parent for file in files if file and file.endswith("__init__.py")]


@contextmanager
def blamed_on(makers: str) -> Generator[None]:
    """Name the functions that may have filled a sample wrongly, if the user gave any.

    Raises:
        SampleError: the one that the block raised, and where to look.
    """
    try:
        yield
    except SampleError as error:
        if not makers:
            raise
        raise SampleError(f"{error}; look at {makers}") from error


class Held:
    """An object that is called by name, or else why it could not be made."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._object: Any = None
        self._problem: SlimeError | None = None
        try:
            self._object = factory()
        except Exception as error:
            logger.exception("this process could not get ready")
            self._problem = error if isinstance(error, SlimeError) else MistakeError(told(error))

    def call(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What ``method`` of the object returns.

        Raises:
            SlimeError: the object could not be made, or whatever its method raised.
            RuntimeError, OSError: of a device or a connection, as they were raised.
            MistakeError: any other error of its method.
        """
        if self._problem is not None:
            raise self._problem
        try:
            return getattr(self._object, method)(*args, **kwargs)
        except (SlimeError, RuntimeError, OSError):
            raise
        except Exception as error:
            logger.exception("`%s` failed", method)
            raise MistakeError(told(error)) from error
