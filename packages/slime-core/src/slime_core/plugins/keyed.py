"""Dictionaries handed to user functions: a key that is not there tells which are."""

import difflib
from collections.abc import Mapping
from typing import Any

from slime_core.errors import PluginError


class MissingKeyError(PluginError, KeyError):
    """A user function asked for a key that there is not, or not in this run."""

    __str__ = PluginError.__str__


class Keyed(dict[str, Any]):
    """A dictionary with a name for messages."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._name = name

    def __missing__(self, key: str) -> Any:
        """Raise ``MissingKeyError``, a ``KeyError``."""
        near = difflib.get_close_matches(str(key), list(self), n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise MissingKeyError(
            f"{self._name} has no {key!r}{meant}: in this run it has {', '.join(sorted(self))}"
        )
