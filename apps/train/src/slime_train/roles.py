"""``--megatron-config-path``: what the actor and its critic have different.

Such as ``megatron: [{role: critic, overrides: {lr: 1.0e-5, hf_checkpoint: /models/value}}]``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from slime_core.config.file_keys import find, meant_by
from slime_core.config.flags import Flag
from slime_core.config.yaml_file import load_yaml
from slime_core.errors import ConfigError
from slime_megatron.config import OWNER as MEGATRON

from slime_train.run_config import RunConfig
from slime_train.sources import RawConfig, all_flags, take_yaml, yaml_keys

CRITICS_OWN = frozenset(
    {
        "hf_checkpoint",
        "value_clip",
        "loss_aggregation",
        "loss_aggregation_constant",
        "only_train_params_name_list",
        "freeze_params_name_list",
        "reset_optimizer_states",
        "use_stateless_adam",
    }
)
"""Slime's own flags that mean something to a critic alone; besides them any of Megatron's."""

_ROLES = ("actor", "critic")


def split_roles(raw: RawConfig) -> tuple[RawConfig, RawConfig]:
    """What was given to the actor, and what to the critic; complaints are in the former."""
    path = raw.value("megatron_config_path")
    actor, critic = _copy(raw), _copy(raw)
    if path is None:
        return actor, critic
    for role, overrides in _entries(actor, Path(path)):
        target = actor if role == "actor" else critic
        for name, value in overrides.items():
            actor.problems += _override(target, role, name, value, path)
    return actor, critic


def differences(actor: RunConfig, critic: RunConfig) -> Iterator[str]:
    """A complaint about what the two have to share: microbatches are cut once, for both."""
    shared = {
        "parallel sizes": (actor.megatron.layout, critic.megatron.layout),
        "batch sizes": (actor.batch, critic.batch),
    }
    for what, (ours, theirs) in shared.items():
        if ours != theirs:
            yield (
                f"--megatron-config-path gives actor and critic other {what} ({ours} and "
                f"{theirs}): they train on the same microbatches, so leave them the same"
            )


def _copy(raw: RawConfig) -> RawConfig:
    return replace(
        raw, given=dict(raw.given), sources=dict(raw.sources), problems=list(raw.problems)
    )


def _entries(raw: RawConfig, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(role, overrides) of every entry that can be read."""
    try:
        content = load_yaml("--megatron-config-path", path)
    except ConfigError as error:
        raw.problems.append(str(error))
        return
    entries: Any = content.get("megatron", [])
    unknown: Iterable[Any] = [key for key in content if key != "megatron"]
    if unknown or not isinstance(entries, list):
        raw.problems.append(
            f"--megatron-config-path {path} must hold one key, `megatron`, with a list of roles"
        )
        return
    for entry in entries:
        role = entry.get("role") if isinstance(entry, Mapping) else None
        overrides = (entry.get("overrides") or entry.get("args") or {}) if role else {}
        if role not in _ROLES or not isinstance(overrides, Mapping):
            raw.problems.append(
                f"--megatron-config-path {path}: {entry!r} is no role: give "
                "{role: actor or critic, overrides: {flag: value}}"
            )
            continue
        yield role, overrides


def _override(raw: RawConfig, role: str, name: str, value: Any, path: str) -> Iterator[str]:
    key = find(yaml_keys(), name)
    if key is None:
        yield f"{path}: {role}: there is no flag {name}{meant_by(str(name), all_flags())}"
    elif role == "critic" and not _is_critics(key.flag):
        yield (
            f"{path}: critic: {name} has no effect on a critic; it may have Megatron's flags and "
            f"{', '.join(sorted(CRITICS_OWN))}"
        )
    else:
        try:
            take_yaml(raw, key, value, path)
        except (ValueError, TypeError) as error:
            yield f"{path}: {role}: {name}: {error}"


def _is_critics(flag: Flag) -> bool:
    return flag.owner == MEGATRON or flag.dest in CRITICS_OWN
