"""Command lines written the upstream way: ``MODEL_ARGS`` compared with config.json.

The architecture is read from config.json. What a command line says about it as well must agree.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from slime_core.errors import CheckpointError

from slime_convert.layer_pattern import written_out
from slime_convert.presets import FLAGS, NEGATED

type Given = dict[str, str | None]
"""Flag -> value; None for a flag that stands alone."""


def read_flags(arguments: Sequence[str]) -> Given:
    """Return the flags of a command line; words that are blank are none."""
    given: Given = {}
    flag = ""
    for word in arguments:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            given[flag] = value if equals else None
        elif word.strip() and flag:
            before = given[flag]
            given[flag] = word if before is None else f"{before} {word}"
        elif word.strip():
            raise CheckpointError(f"`{word}` follows no flag")
    return given


def contradictions(given: Given, arguments: Mapping[str, Any]) -> list[str]:
    """Return one text for each flag of ``given`` that says something else than config.json."""
    dests = {flag: dest for dest, flag in FLAGS.items()}
    found: list[str] = []
    for flag, text in given.items():
        dest = dests.get(flag)
        if dest is None:
            continue
        if text is None:
            wanted: Any = dest not in NEGATED
            ours = arguments.get(dest, not wanted)
        else:
            ours = arguments.get(dest)
            wanted = _read(text, ours)
        if not _same(dest, wanted, ours, arguments):
            found.append(f"{flag} is {_said(text)} and config.json says {dest} = {ours!r}")
    return found


def unknown(given: Given) -> list[str]:
    """Return the flags that say nothing about the architecture."""
    return [flag for flag in given if flag not in FLAGS.values()]


def _said(text: str | None) -> str:
    return "given" if text is None else text


def _read(text: str, ours: Any) -> Any:
    """The value as the type of what it is compared with, if it can be."""
    try:
        if isinstance(ours, bool):
            return {"true": True, "false": False}.get(text.lower(), text)
        if isinstance(ours, int | float):
            return float(text)
    except ValueError:
        return text
    return text


def _same(dest: str, wanted: Any, ours: Any, arguments: Mapping[str, Any]) -> bool:
    """Equality; of patterns of layers, that of what they stand for."""
    if dest == "moe_layer_freq" and isinstance(wanted, str):
        layers = int(arguments["num_layers"])
        return written_out(wanted, layers) == written_out(ours, layers)
    return wanted == ours
