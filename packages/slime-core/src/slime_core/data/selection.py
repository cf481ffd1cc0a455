"""Which groups of the buffer go first: the shipped selections, and how the user's are called.

A selection takes (args, rollout_id, buffer, num_samples) and returns at most ``num_samples``
groups, each a list of samples. Name one with --buffer-filter-path.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from slime_core.errors import PluginError
from slime_core.types import Sample

Groups = list[list[Sample]]
Select = Callable[[Any, int | None, Groups, int], Groups]


def oldest_first(args: Any, rollout_id: int | None, buffer: Groups, num_samples: int) -> Groups:
    """The groups that have waited longest."""
    return buffer[:num_samples]


def priority(args: Any, rollout_id: int | None, buffer: Groups, num_samples: int) -> Groups:
    """The groups of the highest metadata["priority"], or another key named by --buffer-key.

    A group without the key has priority 0; of equals the oldest goes first.
    """
    key = getattr(args, "buffer_key", None) or "priority"
    return sorted(buffer, key=lambda group: -float(_metadata(group, key) or 0))[:num_samples]


def stratified(args: Any, rollout_id: int | None, buffer: Groups, num_samples: int) -> Groups:
    """Groups by turns from each value of metadata["source"], or of --buffer-key.

    A turn begins with the value that has waited longest; of one value the oldest goes first. Where
    there are several prompt files, "source" is the file.
    """
    key = getattr(args, "buffer_key", None) or "source"
    strata: dict[str, Groups] = {}
    for group in buffer:
        strata.setdefault(repr(_metadata(group, key)), []).append(group)
    longest = max(map(len, strata.values()), default=0)
    turns = [
        stratum[turn]
        for turn in range(longest)
        for stratum in strata.values()
        if turn < len(stratum)
    ]
    return turns[:num_samples]


def _metadata(group: list[Sample], key: str) -> Any:
    return group[0].metadata.get(key)


def as_select(fn: Callable[..., Any], name: str) -> Select:
    """``fn``, which may leave out ``rollout_id``, or ``args`` as well, called with all four.

    Raises:
        PluginError: it can be called in none of these ways; when called: it returned what is no
            choice of groups of the buffer.
    """
    signature = inspect.signature(fn)
    forms = (
        ("args", "rollout_id", "buffer", "num_samples"),
        ("args", "buffer", "num_samples"),
        ("buffer", "num_samples"),
    )
    for form in forms:
        try:
            signature.bind(*form)
        except TypeError:
            continue

        def select(*arguments: Any, form: tuple[str, ...] = form) -> Groups:
            values = dict(zip(forms[0], arguments, strict=True))
            before = {id(group) for group in values["buffer"]}  # it may take them out itself
            found = fn(*(values[parameter] for parameter in form))
            return _choice(found, before, values["num_samples"], name)

        return select
    shapes = " or ".join(f"f({', '.join(form)})" for form in forms)
    raise PluginError(f"plugin {name!r} must be callable as {shapes}, but is {signature}")


def _choice(found: Any, before: set[int], num_samples: int, name: str) -> Groups:
    """``found`` as a list: at most ``num_samples`` of the groups whose ids are ``before``."""
    must = "it must return different groups of the buffer, and no more than it was asked for"
    if not isinstance(found, Iterable):
        raise PluginError(f"buffer filter {name!r} returned {found!r:.80}; {must}")
    chosen: Groups = list(found)
    identities = {id(group) for group in chosen}
    if len(chosen) > num_samples or len(identities) < len(chosen) or not identities <= before:
        raise PluginError(
            f"buffer filter {name!r} returned {len(chosen)} groups for {num_samples}; {must}"
        )
    return chosen


def take(
    select: Select, buffer: Groups, num_samples: int, *, args: Any, rollout_id: int | None
) -> Groups:
    """What ``select`` chooses, out of the buffer whether or not it took it out itself."""
    if not buffer or num_samples <= 0:
        return []
    chosen = select(args, rollout_id, buffer, num_samples)
    identities = {id(group) for group in chosen}
    buffer[:] = [group for group in buffer if id(group) not in identities]
    return chosen
