"""Dumps of an iteration's samples: written by one run, trained on by another.

A file holds ``{"rollout_id": iteration, "groups": [{"group_index", "samples", "baseline"}]}``,
every sample as a dictionary of its attributes.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from slime_core.data.buffer import group_from_plain, plain_group
from slime_core.errors import DataError
from slime_core.types import SampleGroup


def write_dump(template: str, iteration: int, groups: Sequence[SampleGroup]) -> None:
    """Write ``groups`` to ``template`` with ``{rollout_id}`` filled in; complete or not there."""
    path = Path(template.format(rollout_id=iteration))
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [plain_group(group) for group in groups]
    partial = path.with_name(f".{path.name}.partial")
    torch.save({"rollout_id": iteration, "groups": rows}, partial)
    partial.replace(path)


def read_dump(template: str, iteration: int) -> list[SampleGroup]:
    """What ``write_dump`` was given.

    Raises:
        DataError: the file is not there or holds something else.
    """
    path = Path(template.format(rollout_id=iteration))
    if not path.is_file():
        raise DataError(f"--load-debug-rollout-data {template}: {path} does not exist")
    content = torch.load(path, weights_only=True)
    if not isinstance(content, dict) or "groups" not in content:
        raise DataError(f"{path} is not a dump of rollout data")
    return [group_from_plain(row) for row in content["groups"]]
