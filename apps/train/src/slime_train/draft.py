"""A configuration while it is being resolved: values, where each came from, what is wrong."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from slime_megatron.config import MEGATRON_DEFAULTS, OWNER, megatron_flags
from slime_sglang.config import ROUTER, ROUTER_DEFAULTS, SERVER

from slime_train.sources import RawConfig, slime_flags

DEFAULT = "default"
REDEFAULT = "default of slime"
MODEL = "model config"


@dataclass(slots=True)
class Values:
    """Name -> value, and name -> where it came from."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    sources: dict[str, str] = field(default_factory=dict[str, str])

    def __getitem__(self, name: str) -> Any:
        """The value as it stands."""
        return self.values[name]

    def put(self, name: str, value: Any, source: str) -> None:
        """Set a value."""
        self.values[name] = value
        self.sources[name] = source

    def given(self, name: str) -> bool:
        """Whether the user set it."""
        source = self.sources.get(name, DEFAULT)
        return not source.startswith((DEFAULT, MODEL, "derived"))


@dataclass(slots=True)
class Draft:
    """What the rules read and write. Field names are unique over slime's sections."""

    own: Values = field(default_factory=Values)
    megatron: Values = field(default_factory=Values)
    server: Values = field(default_factory=Values)
    """Only what differs from SGLang's defaults."""
    router: Values = field(default_factory=Values)
    """Only what differs from the router's defaults."""
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    problems: list[str] = field(default_factory=list[str])
    notices: list[str] = field(default_factory=list[str])

    def __getitem__(self, name: str) -> Any:
        """The value of one of slime's own fields."""
        return self.own[name]

    def given(self, *names: str) -> bool:
        """Whether the user set any of these fields."""
        return any(self.own.given(name) for name in names)

    def derive(self, name: str, value: Any, rule: str) -> None:
        """Set a field on behalf of a rule; a value that stays the same keeps its source."""
        if self.own[name] != value:
            self.own.put(name, value, f"derived: {rule}")

    def derive_megatron(self, dest: str, value: Any, rule: str) -> None:
        """Set a Megatron value on behalf of a rule."""
        if self.megatron.values.get(dest) != value:
            self.megatron.put(dest, value, f"derived: {rule}")

    def problem(self, text: str) -> None:
        """Report a mistake; the run will not start."""
        self.problems.append(text)

    def notice(self, text: str) -> None:
        """Tell the user about something that is probably not meant."""
        self.notices.append(text)


def draft_of(raw: RawConfig) -> Draft:
    """Lay what was given over the defaults."""
    draft = Draft(extra=raw.extra, problems=list(raw.problems))
    for flag in slime_flags():
        draft.own.put(flag.dest, flag.default, DEFAULT)
    for flag in reversed(megatron_flags()):  # of flags with one destination the first counts
        draft.megatron.put(flag.dest, flag.default, DEFAULT)
    for dest, value in MEGATRON_DEFAULTS.items():
        draft.megatron.put(dest, value, REDEFAULT)
    for dest, value in ROUTER_DEFAULTS.items():
        draft.router.put(dest, value, REDEFAULT)
    draft.notices += near_misses(raw)
    foreign = {OWNER: draft.megatron, SERVER: draft.server, ROUTER: draft.router}
    for (owner, dest), given in raw.given.items():
        values = foreign.get(owner, draft.own)
        values.put(dest, given.value, raw.sources[owner, dest])
    return draft


def near_misses(raw: RawConfig) -> Iterator[str]:
    """Keys of the user's own that look like a flag with a typo."""
    known = [flag.dest for flag in (*slime_flags(), *megatron_flags())]
    for key in raw.extra:
        if near := difflib.get_close_matches(key, known, n=1, cutoff=0.9):
            yield f"{key} in --custom-config-path is no flag (did you mean {near[0]}?)"
