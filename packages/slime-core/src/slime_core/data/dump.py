"""Dumps of samples: an iteration's are trained on by another run, an evaluation's are looked at.

A file holds ``{"rollout_id": iteration, "groups": [{"group_index", "samples", "baseline"}]}``,
every sample as a dictionary of its attributes; that of an evaluation
``{"rollout_id": iterations done, "sets": {name: [sample]}}``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from slime_core.data.plain_data import plain_copy
from slime_core.data.plain_samples import group_from_plain, plain_group, plain_sample
from slime_core.errors import DataError
from slime_core.files.durable import sync
from slime_core.types import SampleGroup


def write_dump(
    template: str, iteration: int, groups: Sequence[SampleGroup], makers: str = ""
) -> None:
    """Write ``groups`` to ``template`` with ``{rollout_id}`` filled in; complete or not there.

    NumPy's values become Python's. ``makers``: the flags of the user's functions that may set
    attributes of a sample.

    Raises:
        DataError: a sample holds an object that cannot be read back; nothing was written.
    """
    path = Path(template.format(rollout_id=iteration))
    rows = plain_copy([plain_group(group) for group in groups], f"{path}: groups", makers)
    write_whole(path, {"rollout_id": iteration, "groups": rows})


def write_evaluation(
    template: str, iteration: int, data: Mapping[str, Mapping[str, Any]], makers: str = ""
) -> None:
    """Write the samples of every set beside the rollouts' dumps, as ``eval_`` and their name.

    ``data``: set -> its ``samples``, which a user's own evaluation may leave out.

    Raises:
        DataError: a sample holds an object that cannot be read back; nothing was written.
    """
    path = Path(template.format(rollout_id=iteration))
    path = path.with_name(f"eval_{path.name}")
    sets = {name: [*map(plain_sample, of.get("samples", ()))] for name, of in data.items()}
    sets = plain_copy(sets, f"{path}: sets", makers)
    write_whole(path, {"rollout_id": iteration, "sets": sets})


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` for ``torch.load``; complete or not there, after a crash as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    torch.save(content, partial)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def read_dump(template: str, iteration: int) -> list[SampleGroup]:
    """What ``write_dump`` was given.

    Raises:
        DataError: the file is not there or holds something else.
    """
    path = Path(template.format(rollout_id=iteration))
    if not path.is_file():
        raise DataError(f"--load-debug-rollout-data {template}: {path} does not exist")
    return [group_from_plain(row) for row in read_rows(path)]


def read_rows(path: Path) -> Sequence[Mapping[str, Any]]:
    """The groups of a dump as plain data.

    Raises:
        DataError: it is no dump.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise DataError(
            f"{path} cannot be read as plain data and tensors alone; NumPy's values, for example, "
            "are others: write it again with --save-debug-rollout-data"
        ) from error
    if not isinstance(content, dict) or "groups" not in content:
        raise DataError(f"{path} is not a dump of rollout data")
    return content["groups"]
