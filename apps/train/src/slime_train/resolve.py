"""From what was given to a complete configuration, in small named rules."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slime_core.config.draft import Draft, Facts
from slime_core.config.flat import flatten
from slime_core.config.rules import (
    advantages,
    batch,
    cluster,
    data,
    files,
    objective,
    off_policy,
    overlap,
    policies,
    tracking,
)
from slime_core.errors import ConfigErrors
from slime_megatron.config import MegatronConfig, command_line, megatron_flags
from slime_megatron.rules import model as megatron
from slime_megatron.rules.host_memory import host_memory_of_both
from slime_rewards import rules as rewards
from slime_sglang import rules as engine
from slime_sglang.config import ROUTER, SERVER, router_flags, server_flags

from slime_train.roles import differences, split_roles
from slime_train.run_config import SECTIONS, RunConfig
from slime_train.sources import RawConfig, draft_of

Rule = Callable[[Draft, Facts], None]

RULES: tuple[Rule, ...] = (
    *megatron.MODEL_RULES,
    engine.response_length,
    *data.RULES,
    *rewards.RULES,
    *cluster.RULES,
    *batch.RULES,
    *objective.RULES,
    *advantages.RULES,
    *overlap.RULES,
    *off_policy.RULES,
    *policies.RULES,
    *files.RULES,
    *tracking.RULES,
    *engine.RULES,
    *megatron.RULES,
)
"""In order: a rule reads what those before it settled."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, where its values came from, and what the user should hear."""

    config: RunConfig
    draft: Draft
    notices: tuple[str, ...]
    critic: Draft | None = None


def resolve(
    raw: RawConfig,
    facts: Facts,
    of_critic: Facts | None = None,
    *,
    also: Callable[[Draft], Iterable[str]] = lambda _: (),
) -> Resolved:
    """Complete and check what was given, for the actor and, with ppo, for its critic.

    ``of_critic``: the facts about the critic's own model, where it has one. ``also`` finds further
    problems of the completed draft, to be told with the others.

    Raises:
        ConfigErrors: every problem there is, those of ``raw`` and ``facts`` included.
    """
    for_actor, for_critic = split_roles(raw)
    draft = _completed(for_actor, facts)
    problems = [*draft.problems, *also(draft)]
    critic: Draft | None = None
    if advantages.needs_critic(draft):
        critic = _completed(for_critic, of_critic or facts)
        both = host_memory_of_both(draft, critic, facts, of_critic or facts)
        problems += [] if both is None else [both]
        problems += [f"critic: {text}" for text in critic.problems if text not in problems]
    elif draft["megatron_config_path"] is not None and for_critic.given != raw.given:
        problems.append("a critic in --megatron-config-path needs --advantage-estimator ppo")
    if problems:
        raise ConfigErrors(tuple(dict.fromkeys(problems)))
    config = _run_config(draft, facts)
    if critic is not None:
        theirs = _run_config(critic, of_critic or facts)
        if found := tuple(differences(config, theirs)):
            raise ConfigErrors(found)
        config = dataclasses.replace(config, of_critic=theirs)
    return Resolved(config, draft, tuple(draft.notices), critic)


def _completed(raw: RawConfig, facts: Facts) -> Draft:
    draft = draft_of(raw)
    draft.problems += facts.problems
    for rule in RULES:
        rule(draft, facts)
    return draft


def _run_config(draft: Draft, facts: Facts) -> RunConfig:
    sections = {name: _section(kind, draft) for name, kind in SECTIONS.items() if name != "command"}
    sections["sglang"] = dataclasses.replace(
        sections["sglang"],
        server=dict(draft.server.values),
        router=dict(draft.router.values),
    )
    sections["megatron"] = MegatronConfig(
        argv=command_line(draft.megatron.values, megatron_flags()),
        values=dict(draft.megatron.values),
        world_size=megatron.world_size(draft),
    )
    flat = flatten(*sections.values(), extra=_foreign(draft))
    return RunConfig(**sections, flat=flat, hf_config=facts.hf_config)


def _section(kind: Any, draft: Draft) -> Any:
    names = {field.name for field in dataclasses.fields(kind)} & set(draft.own.values)
    return kind(**{name: draft[name] for name in names})


def _foreign(draft: Draft) -> Mapping[str, Any]:
    """Values of other owners as upstream names them; the user's own keys win."""
    return {
        **draft.megatron.values,
        **{
            f"{flag.owner}_{flag.dest}": flag.default for flag in (*server_flags(), *router_flags())
        },
        **{f"{SERVER}_{name}": value for name, value in draft.server.values.items()},
        **{f"{ROUTER}_{name}": value for name, value in draft.router.values.items()},
        **draft.extra,
    }
