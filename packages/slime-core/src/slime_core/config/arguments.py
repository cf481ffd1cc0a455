"""Reading a command line against flags of several owners, with every problem reported.

Like argparse with ``allow_abbrev=False``, except that it goes on after the first mistake.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slime_core.config.flags import Flag
from slime_core.config.gone import GONE, MEANT

_FOREIGN = ("megatron", "sglang", "router")
"""Owners of flags that few people mean."""
_ALIKE, _ALIKE_OWN = 0.85, 0.75
"""How alike a spelling must be to be suggested, as ``difflib`` measures it."""
_NUMBER = re.compile(r"-\d*\.?\d")


@dataclass(frozen=True, slots=True)
class Given:
    """A flag that was given, with its value and the words it was given as."""

    flag: Flag
    value: Any
    words: tuple[str, ...]


@dataclass(slots=True)
class Parsed:
    """What a command line says; ``problems`` is empty when all of it is understood."""

    given: dict[tuple[str, str], Given] = field(default_factory=dict[tuple[str, str], Given])
    problems: list[str] = field(default_factory=list[str])


def by_name(flags: Iterable[Flag]) -> dict[str, Flag]:
    """Every spelling -> its flag.

    Raises:
        AssertionError: two flags share a spelling.
    """
    named: dict[str, Flag] = {}
    for flag in flags:
        for name in (*flag.names, *flag.negatives):
            assert name not in named, f"{name} belongs to {named[name].owner} and {flag.owner}"
            named[name] = flag
    return named


def parse(argv: Sequence[str], named: Mapping[str, Flag]) -> Parsed:
    """Read ``argv``; a repeated flag's last value counts, unless its flag collects values."""
    parsed = Parsed()
    position = 0
    while position < len(argv):
        head, equals, tail = argv[position].partition("=")
        position += 1
        if not _looks_like_a_flag(head):
            parsed.problems.append(f"unexpected word {argv[position - 1]!r}: flags start with --")
            continue
        end = position
        while not equals and end < len(argv) and not _looks_like_a_flag(argv[end]):
            end += 1
        words = [tail] if equals else list(argv[position:end])
        flag = named.get(head)
        if flag is None:
            parsed.problems.append(unknown(head, named))
            position = end
            continue
        limit = None if equals else _limit(flag)
        position += 0 if equals else len(words[:limit])
        _take(parsed, flag, head, words[:limit])
    _finish_collected(parsed)
    return parsed


def unknown(name: str, known: Mapping[str, Flag]) -> str:
    """The complaint about a flag nobody owns: what to do, or the nearest spelling there is."""
    spelled = name.replace("_", "-").lower()
    if spelled in GONE:
        return f"{name} is no flag here: {GONE[spelled]}"
    near = _nearest(spelled, known)
    return f"unknown flag {name}" + (f" (did you mean {near}?)" if near else "")


def _nearest(spelled: str, known: Mapping[str, Flag]) -> str | None:
    """A flag of this spelling, of this meaning elsewhere, or much alike; slime's own first."""
    meant = {other: flag for other, flag in MEANT.items() if flag in known}
    if spelled in known or spelled in meant:
        return meant.get(spelled, spelled)
    own = [other for other, flag in known.items() if flag.owner not in _FOREIGN]
    for names in (own, list(known)):
        if longer := [other for other in names if other.startswith(spelled)]:
            return min(longer, key=len)
    words = sorted(spelled.strip("-").split("-"))
    candidates = {**dict.fromkeys(known, _ALIKE), **dict.fromkeys((*own, *meant), _ALIKE_OWN)}
    best = (0.0, "")
    for other, cutoff in candidates.items():
        ratio = difflib.SequenceMatcher(None, spelled, other).ratio()
        if sorted(other.strip("-").split("-")) == words:
            ratio = 1.0
        if ratio >= cutoff:
            best = max(best, (ratio - cutoff, other))
    return meant.get(best[1], best[1]) or None


def _looks_like_a_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2 and not _NUMBER.match(word)


def _limit(flag: Flag) -> int | None:
    """How many words a flag takes at most; None for all up to the next flag."""
    if isinstance(flag.arity, int):
        return flag.arity
    return {"none": 0, "one": 1, "optional": 1, "any": None, "some": None}[flag.arity]


def _take(parsed: Parsed, flag: Flag, name: str, words: list[str]) -> None:
    """File one occurrence of ``flag``, or its problem."""
    expected = _arity_problem(flag, words)
    if expected:
        given = f"got {' '.join(map(repr, words))}" if words else "got none"
        parsed.problems.append(f"{name} expects {expected}, {given}{allowed(flag)}")
        return
    try:
        value = value_of(flag, name, words)
    except ValueError as error:
        parsed.problems.append(str(error))
        return
    spelled = (name, *words)
    earlier = parsed.given.get(flag.key)
    if flag.spelling.get("repeat"):
        value = (*(earlier.value if earlier else ()), value)
        spelled = (*(earlier.words if earlier else ()), *spelled)
    parsed.given[flag.key] = Given(flag, value, spelled)


def _arity_problem(flag: Flag, words: Sequence[str]) -> str | None:
    """What was expected, when the number of words is wrong."""
    match flag.arity:
        case "none":
            return "no value" if words else None
        case "one":
            return None if len(words) == 1 else f"one {flag.type_name} value"
        case "some":
            return None if words else f"at least one {flag.type_name} value"
        case int(count):
            return None if len(words) == count else f"{count} {flag.type_name} values"
        case _:
            return None


def value_of(flag: Flag, name: str, words: Sequence[str]) -> Any:
    """The value that ``words`` after ``name`` stand for.

    Raises:
        ValueError: with the complaint, when a word is of the wrong type or not allowed.
    """
    if flag.arity == "none":
        return False if name in flag.negatives else flag.const
    values = tuple(_convert(flag, name, word) for word in words)
    if flag.arity == "one":
        return values[0]
    if flag.arity == "optional":
        return values[0] if values else flag.const
    return values


def _convert(flag: Flag, name: str, word: str) -> Any:
    try:
        value = flag.convert(word)
    except (ValueError, TypeError) as error:
        complaint = f"{name} expects {flag.type_name}, got {word!r}"
        raise ValueError(complaint + allowed(flag)) from error
    check_value(flag, name, value)
    return value


def check_value(flag: Flag, name: str, value: Any) -> None:
    """Raise ValueError when ``value`` is not among the choices or out of range."""
    if flag.choices is not None and value not in flag.choices:
        choices = [str(choice) for choice in flag.choices]
        meant = MEANT.get(str(value))
        near = [meant] if meant in choices else difflib.get_close_matches(str(value), choices, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{name} must be one of {_listed(flag.choices)}, got {value!r}{hint}")
    if not _in_range(flag, value):
        why = f" ({flag.help})" if flag.help else ""
        raise ValueError(f"{name} must be {range_of(flag)}, got {value}{why}")


def _in_range(flag: Flag, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    limits = flag.spelling
    return (
        value > limits.get("above", float("-inf"))
        and value >= limits.get("at_least", float("-inf"))
        and value <= limits.get("at_most", float("inf"))
        and ("below" not in limits or value < limits["below"])
    )


def range_of(flag: Flag) -> str:
    """The range in words, e.g. ``> 0 and <= 1``; empty without one."""
    signs = (("above", ">"), ("at_least", ">="), ("at_most", "<="), ("below", "<"))
    return " and ".join(
        f"{sign} {flag.spelling[name]}" for name, sign in signs if name in flag.spelling
    )


def allowed(flag: Flag) -> str:
    """What may be given, for the end of a complaint."""
    if flag.choices is not None:
        return f"; allowed: {_listed(flag.choices)}"
    return f"; allowed: {range_of(flag)}" if range_of(flag) else ""


def _listed(choices: Iterable[Any]) -> str:
    return ", ".join(str(choice) for choice in choices)


def _finish_collected(parsed: Parsed) -> None:
    """Turn the occurrences of collecting flags into their value."""
    for key, given in list(parsed.given.items()):
        if not given.flag.spelling.get("repeat"):
            continue
        parse_all = given.flag.spelling.get("parse")
        try:
            value = parse_all(given.value) if parse_all else given.value
            parsed.given[key] = Given(given.flag, value, given.words)
        except ValueError as error:
            parsed.problems.append(f"{given.flag.names[0]} {error}, got {' '.join(given.words)}")
            del parsed.given[key]
