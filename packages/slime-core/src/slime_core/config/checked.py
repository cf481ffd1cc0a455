"""Sections that are made by hand, checked as the command line is."""

import functools

from slime_core.config.arguments import check_value
from slime_core.config.flags import Flag, flags_of
from slime_core.errors import ConfigError


def check_section(section: object) -> None:
    """Refuse values that the flags of ``section`` would refuse.

    Called by sections when they are made: in a run the parser has checked the words already, but
    in a notebook a misspelt choice would otherwise fail far away from its cause, and a number out
    of range would not fail at all.

    Raises:
        ConfigError: naming each field whose value is no choice or out of range.
    """
    problems: list[str] = []
    for flag in _flags(type(section)):
        try:
            check_value(flag, f"{type(section).__name__}.{flag.dest}", getattr(section, flag.dest))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))


@functools.cache
def _flags(section: type) -> tuple[Flag, ...]:
    """Those of its flags whose single value has choices or a range."""
    limits = {"above", "at_least", "at_most", "below"}
    return tuple(
        flag
        for flag in flags_of(section)
        if flag.arity == "one" and (flag.choices is not None or limits & flag.spelling.keys())
    )
