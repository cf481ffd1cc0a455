"""Paths in which numbers are filled in: by the names that there are, and so that files differ."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slime_core.config.draft import Draft, Facts, spelled
from slime_core.files.writable import obstacle

_PLACES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "save_hf": {"rollout_id": 0},
        "save_debug_rollout_data": {"rollout_id": 0},
        "load_debug_rollout_data": {"rollout_id": 0},
        "save_debug_train_data": {"rollout_id": 0, "rank": 0},
        "ci_save_grad_norm": {"role": "actor", "rollout_id": 0, "step_id": 0},
        "ci_load_grad_norm": {"role": "actor", "rollout_id": 0, "step_id": 0},
    }
)
"""What may stand in braces in each, with an example."""

_ONE_EACH = ("save_debug_rollout_data", "save_debug_train_data", "ci_save_grad_norm")
"""Of which every iteration writes another file; --save-hf may be written over."""

_READ = ("load_debug_rollout_data", "ci_load_grad_norm")


def filled_in(draft: Draft, facts: Facts) -> None:
    """A path can be made of a template before there is something to write."""
    for name, places in _PLACES.items():
        template = draft[name]
        if template is None:
            continue
        try:
            first = template.format(**places)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            known = " and ".join(f"{{{place}}}" for place in places)
            draft.problem(
                f"{spelled(name)} {template}: only {known} can be filled in there; write {{{{ and "
                "}} for braces of the path itself"
            )
            continue
        alike = template.format(**{**places, "rollout_id": 1}) == first
        if alike and name in _ONE_EACH and draft["num_rollout"] not in (0, 1):
            draft.notice(
                f"{spelled(name)} {template}: every iteration writes over what the one before it "
                "wrote; put {rollout_id} into the path"
            )
        if name not in _READ and not draft["dump_config"]:
            _writable(draft, name, first)


def _writable(draft: Draft, name: str, path: str) -> None:
    """What is first written when hours are spent has its place looked at before."""
    if (why := obstacle(Path(path))) is None:
        return
    given = name if draft.given(name) or draft["dump_details"] is None else "dump_details"
    draft.problem(f"{spelled(given)} {draft[given]}: {why}; choose another place")


def one_file_per_rank(draft: Draft, facts: Facts) -> None:
    """Ranks write at the same time."""
    template = draft["save_debug_train_data"]
    ranks = draft["actor_num_nodes"] * draft["actor_num_gpus_per_node"]
    if template is not None and ranks > 1 and "{rank" not in template:
        draft.problem(
            f"--save-debug-train-data {template}: {ranks} ranks would write the same file; put "
            "{rank} into the path"
        )


RULES = (filled_in, one_file_per_rank)
