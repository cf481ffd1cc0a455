"""``--dump-config``: every resolved value and where it comes from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from slime_core.config.draft import DEFAULT, Draft, Values
from slime_core.config.flags import flags_of
from slime_core.config.secrets import hide, without_secrets, words_without_secrets

_NAME, _VALUE = 44, 36


def dump_lines(
    draft: Draft,
    sections: Mapping[str, type],
    megatron_argv: Sequence[str],
    critic: Draft | None = None,
) -> Iterator[str]:
    """Slime's sections, then Megatron, engines, router, and what a critic has of its own."""
    for name, section in sections.items():
        yield f"[{name}]"
        fields = (flag.dest for flag in flags_of(section) if not _refused(flag.spelling))
        yield from _lines(draft.own, fields)
    yield "\n[megatron]  what differs from Megatron's defaults"
    yield from _lines(draft.megatron, _changed(draft.megatron))
    yield "\n[megatron]  defaults"
    yield from _lines(draft.megatron, _unchanged(draft.megatron))
    yield "\n[megatron]  command line"
    yield "  " + " ".join(words_without_secrets(megatron_argv))
    yield "\n[sglang]  server flags; the others keep SGLang's defaults"
    yield from _lines(draft.server, draft.server.values)
    yield "\n[router]  router flags; the others keep the router's defaults"
    yield from _lines(draft.router, draft.router.values)
    yield from _own_keys(draft)
    if critic is not None:
        yield "\n[critic]  what --megatron-config-path gives it alone"
        for ours, theirs in ((draft.own, critic.own), (draft.megatron, critic.megatron)):
            yield from _lines(theirs, [n for n, x in theirs.values.items() if x != ours[n]])


def _own_keys(draft: Draft) -> Iterator[str]:
    if draft.extra:
        yield "\n[user]  keys of --custom-config-path that are no flags; plugins see them"
        for key, value in draft.extra.items():
            yield _line(key, value, "custom config")


def _refused(spelling: Mapping[str, Any]) -> bool:
    return isinstance(spelling.get("planned"), str)


def _changed(values: Values) -> list[str]:
    return [name for name, source in values.sources.items() if source != DEFAULT]


def _unchanged(values: Values) -> list[str]:
    return [name for name, source in values.sources.items() if source == DEFAULT]


def _lines(values: Values, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield _line(name, values[name], values.sources[name])


def _line(name: str, value: Any, source: str) -> str:
    value = hide(name, without_secrets(value) if isinstance(value, Mapping) else value)
    shown = repr(value) if isinstance(value, str) else str(value)
    return f"  {name:<{_NAME}} {shown:<{_VALUE}}  # {source}"
