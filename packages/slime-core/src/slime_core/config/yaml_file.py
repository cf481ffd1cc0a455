"""Flags in a YAML file: the same values, checks and complaints as on the command line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_core.config.arguments import Given, parse, value_of
from slime_core.config.flags import Flag
from slime_core.errors import ConfigError


def load_yaml(flag: str, path: Path) -> Mapping[str, Any]:
    """The mapping that a YAML file given for ``flag`` holds.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{flag} {path} must hold a mapping of flags to values")
    found: Mapping[str, Any] = content
    return found


def read_value(flag: Flag, value: Any, spelling: str | None = None) -> Given:
    """A YAML value as if it had been given on the command line.

    ``spelling``: that of a flag without a value, where true means that it is given; without it
    the value is that of the setting.

    Raises:
        ValueError: it is none of the flag's values.
    """
    name = spelling or flag.names[0]
    if flag.arity == "none":
        if not isinstance(value, bool):
            raise ValueError(f"{name} expects true or false, got {value!r}")
        key = flag.dest if spelling is None else spelling.removeprefix("--").replace("-", "_")
        setting = value if spelling is None else _setting(flag, spelling, given=value)
        return Given(flag, setting, (f"{key}: {str(value).lower()}",))
    taken = parse((name, *_words_of(flag, value)), {name: flag})
    if taken.problems:
        raise ValueError("; ".join(taken.problems))
    return taken.given[flag.key]


def _setting(flag: Flag, spelling: str, *, given: bool) -> Any:
    """What a flag without a value sets, or the opposite where it is said not to be given."""
    setting = value_of(flag, spelling, ())
    if given:
        return setting
    if not isinstance(setting, bool):
        raise ValueError(f"{spelling} expects true, got False: leave it out")  # noqa: TRY004
    return not setting


def _words_of(flag: Flag, value: Any) -> list[str]:
    """A YAML value as the words that would follow the flag."""
    if flag.type_name.lower().startswith("json"):
        return [value if isinstance(value, str) else json.dumps(value)]
    if isinstance(value, Mapping):
        return [str(word) for pair in value.items() for word in pair]
    if isinstance(value, list):
        return [str(item) for item in value]
    return [str(value)]
