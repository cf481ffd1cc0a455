"""Where values come from: the command line, then a YAML file that wins over it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from slime_core.config.arguments import Given, Parsed, by_name, parse
from slime_core.config.draft import DEFAULT, REDEFAULT, Draft
from slime_core.config.file_keys import Key, find, keys_of, meant_by
from slime_core.config.flags import Flag, flags_of
from slime_core.config.yaml_file import load_yaml, read_value
from slime_core.errors import ConfigError
from slime_megatron.config import MEGATRON_DEFAULTS, megatron_flags, refusal
from slime_megatron.config import OWNER as MEGATRON
from slime_sglang.config import (
    ROUTER,
    ROUTER_DEFAULTS,
    SERVER,
    SLIME_SETS,
    router_flags,
    server_flags,
)

from slime_train.run_config import SECTIONS

COMMAND_LINE = "command line"


@dataclass(slots=True)
class RawConfig:
    """Everything that was given, unresolved, and every complaint so far."""

    given: dict[tuple[str, str], Given] = field(default_factory=dict[tuple[str, str], Given])
    sources: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """YAML keys that are no flag: the user's own, for plugins."""
    problems: list[str] = field(default_factory=list[str])

    def value(self, dest: str, default: Any = None) -> Any:
        """What was given for one of slime's own fields."""
        return next(
            (g.value for (owner, d), g in self.given.items() if d == dest and owner in _OWNERS),
            default,
        )


_OWNERS = frozenset(section.__name__ for section in SECTIONS.values())


@cache
def slime_flags() -> tuple[Flag, ...]:
    """The flags of every section."""
    return tuple(flag for section in SECTIONS.values() for flag in flags_of(section))


@cache
def all_flags() -> Mapping[str, Flag]:
    """Every spelling the command line knows; slime's own flags shadow Megatron's."""
    ours = slime_flags()
    shadowed = {name for flag in ours for name in (*flag.names, *flag.negatives)}
    theirs = (flag for flag in megatron_flags() if shadowed.isdisjoint(flag.names))
    return by_name((*ours, *theirs, *server_flags(), *router_flags()))


def read_sources(argv: Sequence[str]) -> RawConfig:
    """Read ``argv`` and the file it names with ``--custom-config-path``."""
    parsed = parse(argv, all_flags())
    raw = RawConfig(problems=list(parsed.problems))
    _merge(raw, parsed, COMMAND_LINE)
    path = raw.value("custom_config_path")
    if path is not None:
        _read_yaml(raw, Path(path))
    raw.problems += refusals(raw.given.values())
    return raw


def _merge(raw: RawConfig, parsed: Parsed, source: str) -> None:
    raw.given |= parsed.given
    raw.sources |= dict.fromkeys(parsed.given, source)


def refusals(given: Iterator[Given] | Any) -> Iterator[str]:
    """A complaint for every value that is not there yet or not the user's to set."""
    for item in given:
        flag, shown = item.flag, " ".join(item.words)
        if flag.owner == MEGATRON and (reason := refusal(flag, item.value)):
            yield f"{shown}: not used here, {reason}"
        elif flag.owner == SERVER and flag.dest in SLIME_SETS:
            yield f"{shown}: the run sets this itself; give {SLIME_SETS[flag.dest]}"
        elif reason := flag.refusal(item.value):
            yield f"{shown}: not there yet; {reason}"


def _read_yaml(raw: RawConfig, path: Path) -> None:
    """Merge a YAML mapping whose keys are flags without dashes, or the user's own."""
    try:
        content = load_yaml("--custom-config-path", path)
    except ConfigError as error:
        raw.problems.append(str(error))
        return
    for key, value in content.items():
        known = find(yaml_keys(), key)
        if known is None:
            raw.extra[str(key)] = value
            continue
        try:
            take_yaml(raw, known, value, str(path))
        except (ValueError, TypeError) as error:
            raw.problems.append(f"{path}: {key}: {error}")


@cache
def yaml_keys() -> Mapping[str, Key]:
    """Field names and flag names, with underscores."""
    theirs = (flag for flag in megatron_flags() if all_flags().get(flag.names[0]) is flag)
    return keys_of(all_flags(), (*theirs, *slime_flags()))


def take_yaml(raw: RawConfig, key: Key, value: Any, source: str) -> None:
    """File a YAML value for a flag; raises ``ValueError`` when it is none of its values."""
    if value is not None:
        raw.given[key.flag.key] = read_value(key.flag, value, key.spelling)
        raw.sources[key.flag.key] = source


def draft_of(raw: RawConfig) -> Draft:
    """Lay what was given over the defaults."""
    meant = {key: meant_by(key, all_flags()) for key in raw.extra}
    draft = Draft(extra=raw.extra, meant=meant, problems=list(raw.problems))
    for flag in slime_flags():
        draft.own.put(flag.dest, flag.default, DEFAULT)
    for flag in reversed(megatron_flags()):  # of flags with one destination the first counts
        draft.megatron.put(flag.dest, flag.default, DEFAULT)
    for dest, value in MEGATRON_DEFAULTS.items():
        draft.megatron.put(dest, value, REDEFAULT)
    for dest, value in ROUTER_DEFAULTS.items():
        draft.router.put(dest, value, REDEFAULT)
    foreign = {MEGATRON: draft.megatron, SERVER: draft.server, ROUTER: draft.router}
    for (owner, dest), given in raw.given.items():
        values = foreign.get(owner, draft.own)
        values.put(dest, given.value, raw.sources[owner, dest])
    return draft
