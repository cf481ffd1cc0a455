"""Flags as text for ``--help``."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator

from slime_core.config.arguments import range_of
from slime_core.config.flags import Flag

_INDENT = 26


def describe(flags: Iterable[Flag]) -> Iterator[str]:
    """One entry per flag; what is only planned is told briefly at the end."""
    later: list[str] = []
    width = max(60, min(shutil.get_terminal_size().columns, 110))
    for flag in flags:
        if isinstance(flag.spelling.get("planned"), str):
            later.append(flag.names[0])
        else:
            yield _entry(flag, width)
    if later:
        text = "planned, refused for now: " + ", ".join(later)
        yield textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    ")


def says(flag: Flag, words: Iterable[str]) -> bool:
    """Whether its names or its help have all of ``words``, small or capital."""
    text = " ".join((*flag.names, *flag.negatives, flag.help)).lower()
    return all(word.lower() in text for word in words)


def _entry(flag: Flag, width: int) -> str:
    names = ", ".join((*flag.names, *flag.negatives))
    head = f"  {names} {_value_of(flag)}".rstrip()
    body = " ".join(filter(None, (flag.help, _facts(flag))))
    lines = textwrap.wrap(body, width - _INDENT, break_on_hyphens=False)
    gap = " " * _INDENT
    if len(head) < _INDENT - 1 and lines:
        first, *lines = lines
        head = f"{head:<{_INDENT}}{first}"
    return "\n".join([head, *(gap + line for line in lines)])


def _value_of(flag: Flag) -> str:
    """The placeholder of a flag's value."""
    if flag.arity == "none":
        return ""
    kind = "VALUE" if flag.type_name == "raw" else flag.type_name.upper()
    word = "|".join(map(str, flag.choices)) if flag.choices else kind
    word = word if len(word) < 60 else kind
    match flag.arity:
        case "some" | "any":
            return f"{word} ..."
        case "optional":
            return f"[{word}]"
        case int(count):
            return " ".join([word] * count)
        case _:
            return word


def _facts(flag: Flag) -> str:
    """Range, default and refused values, in brackets."""
    facts = [range_of(flag)] if range_of(flag) else []
    if flag.default not in (None, (), [], {}, "") and flag.arity != "none":
        facts.append(f"default {_shown(flag.default)}")
    planned = flag.spelling.get("planned")
    if planned and not isinstance(planned, str) and flag.arity != "none":
        facts.append(f"planned: {', '.join(map(str, planned))}")
    return f"[{'; '.join(facts)}]" if facts else ""


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
