"""Which model a directory holds weights of; found without torch, before a run starts anything.

Pickles are programs. Here they find no function and no class: whatever they name becomes an
``_Inert``, so numbers and texts come out as they are, and everything else as something to skip.
"""

import io
import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slime_core.errors import CheckpointError
from slime_core.files.staging import latest

from slime_convert.families import Family, find, read_config

logger = logging.getLogger(__name__)

COMMON = "common_state/shard_0_1"
"""Megatron's name for all that is no tensor."""
_METADATA = ".metadata"

Newest = tuple[str | None, int | None]
"""A directory of checkpoints, if it was given, and the iteration that was asked for, if one was."""


def architecture(family: Family, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that tensors depend on, or how they are computed with."""
    values = {"model_type": family.model_type, **arguments}
    values.pop("max_position_embeddings", None)
    return values


def differences(
    saved: Mapping[str, Any], family: Family, arguments: Mapping[str, Any]
) -> list[str]:
    """Return in what the checkpoint's model differs; nothing where it does not say."""
    return _differences(saved.get("slime", {}).get("architecture", {}), family, arguments)


def _differences(
    theirs: Mapping[str, Any], family: Family, arguments: Mapping[str, Any]
) -> list[str]:
    return [
        f"{name} is {theirs.get(name)!r} there and {value!r} here"
        for name, value in architecture(family, arguments).items()
        if theirs and theirs.get(name) != value
    ]


def of_other_models(
    given: Mapping[str, Newest], family: Family, arguments: Mapping[str, Any], *, part: str = ""
) -> Iterator[str]:
    """A complaint about every flag whose weights are not of the model of --hf-checkpoint.

    Directories hold checkpoints, or a Hugging Face model. ``part``: the subdirectory of a
    checkpoint that holds this model, where it holds several. What cannot be read here is left to
    the load, which says why.
    """
    for flag, (where, step) in given.items():
        if where is None:
            continue
        found = _newest(Path(where), step)
        if found is None:
            what, other = "it holds the weights", _of_hf(where, family, arguments)
        else:
            what = f"{found.name} is a checkpoint"
            other = differences(common(found / part), family, arguments)
        if other:
            yield (
                f"{flag} {where}: {what} of another model than --hf-checkpoint describes: "
                f"{'; '.join(other)}. Give the --hf-checkpoint that it was trained from, or "
                f"another {flag}"
            )


def _of_hf(where: str, family: Family, arguments: Mapping[str, Any]) -> list[str]:
    """In what the model of a config.json differs; nothing where there is none that is known."""
    try:
        config = read_config(where)
        theirs = find(config)
        return _differences(architecture(theirs, theirs.megatron_args(config)), family, arguments)
    except CheckpointError as error:
        logger.debug("%s does not say which model it is of: %s", where, error)
        return []


def common(directory: Path) -> Mapping[str, Any]:
    """What the checkpoint says of itself; nothing where that cannot be read."""
    try:
        with (directory / _METADATA).open("rb") as file:
            metadata = _Plain(file).load()
        (place,) = (x for i, x in metadata.storage_data.items() if i.fqn == COMMON)
        with (directory / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            archive = zipfile.ZipFile(io.BytesIO(file.read(place.length)))
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        return dict(_Plain(io.BytesIO(archive.read(name))).load()[0])
    except Exception as error:  # whatever other formats and damaged pickles lead to
        logger.debug("%s does not say which model it is of: %r", directory, error)
        return {}


def _newest(where: Path, step: int | None) -> Path | None:
    try:
        return latest(where, step)
    except CheckpointError:
        return None


class _Inert:
    """Anything that a pickle makes; has the attributes that it was given."""

    def __init__(self, *args: Any) -> None:
        """Whatever it is made of."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Inert

    def persistent_load(self, pid: Any) -> None:
        """A tensor's bytes, which nobody wants."""
