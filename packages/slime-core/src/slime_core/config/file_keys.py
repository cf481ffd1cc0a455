"""Keys in files of flags: a flag by any of its names, or else the user's own."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from slime_core.config.flags import Flag
from slime_core.config.gone import GONE, MEANT

_ALIKE = 0.9
"""How alike a key of the user's own and a flag must be for the one to be a typo of the other."""


@dataclass(frozen=True, slots=True)
class Key:
    """A flag, and by which of its names a file gives it."""

    flag: Flag
    spelling: str | None = None
    """As on the command line, so that true means what the flag does there; None for the name of
    what it sets, whose value is then the key's own."""


def keys_of(named: Mapping[str, Flag], by_setting: Iterable[Flag]) -> Mapping[str, Key]:
    """Keys for every spelling in ``named``, and for what the flags of ``by_setting`` set.

    The latter win. Of slime's flags that deny, upstream's name of what they set is one as well:
    ``rewards_normalization`` of ``--disable-rewards-normalization``.
    """
    keys = {_written(name): Key(flag, name) for name, flag in named.items()}
    for flag in by_setting:
        keys[flag.dest] = Key(flag)
        if "negated" in flag.spelling:
            keys |= {_written(name).removeprefix("disable_"): Key(flag) for name in flag.names}
    return keys


def find(keys: Mapping[str, Key], written: object) -> Key | None:
    """What a key in a file stands for; dashes in it and in front of it do not matter."""
    return keys.get(_written(str(written)))


def meant_by(own: str, named: Iterable[str]) -> str:
    """For a key that is no flag but nearly one, what to give, in brackets; empty for others."""
    spelled = "--" + _written(own).replace("_", "-").lower()
    if spelled in GONE:
        return f" ({GONE[spelled]})"
    near = difflib.get_close_matches(spelled, named, n=1, cutoff=_ALIKE)
    meant = MEANT.get(spelled) or next(iter(near), None)
    return f" (did you mean {_written(meant)}?)" if meant else ""


def _written(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")
