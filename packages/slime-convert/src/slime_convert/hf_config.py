"""Reading config.json: required keys, both spellings of rotary embeddings, what is refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from slime_core.errors import CheckpointError

from slime_convert.config_values import is_number, shown
from slime_convert.rules import HfConfig

_OBJECTS = ("quantization_config", "rope_parameters", "rope_scaling")
"""Keys whose values are objects, or null."""


def read_config(directory: Path | str) -> HfConfig:
    """Return the values of ``directory``/config.json.

    Raises:
        CheckpointError: there is none, or it is no object of JSON with objects where they belong.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        what = "has no config.json" if Path(directory).is_dir() else "is not a directory"
        raise CheckpointError(
            f"{directory} {what}: give the directory of a Hugging Face checkpoint "
            "(config.json, tokenizer files, *.safetensors)"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of UTF-8, of JSON, of its nesting and integers
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not an object")
    config = cast("dict[str, Any]", values)
    for key in _OBJECTS:
        if not isinstance(config.get(key), dict | None):
            raise CheckpointError(f"{path} says {key} = {config[key]!r:.80}: an object is needed")
    return config


def require(config: HfConfig, *keys: str) -> None:
    """Raise one ``CheckpointError`` naming every key that is absent or null."""
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise CheckpointError(
            f"config.json of model_type {config.get('model_type')!r} lacks {', '.join(missing)}"
        )


def require_sizes(config: HfConfig, *keys: str) -> None:
    """The same, for keys whose values must be whole numbers above 0."""
    require(config, *keys)
    wrong = [f"{key} = {shown(config[key])}" for key in keys if not _is_size(config[key])]
    if wrong:
        raise CheckpointError(
            f"config.json says {', '.join(wrong)}: whole numbers of at least 1 are needed"
        )


def number(key: str, value: Any) -> float:
    """Return a value of config.json that must be a number."""
    if not is_number(value):
        raise CheckpointError(f"config.json says {key} = {shown(value)}: a number is needed")
    return value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def refuse(config: HfConfig, key: str, *, allowed: tuple[Any, ...], reason: str) -> None:
    """Raise ``CheckpointError`` when ``key`` is given and is none of the ``allowed`` values."""
    value = config.get(key, allowed[0])
    if value not in allowed:
        raise CheckpointError(f"config.json says {key} = {shown(value)}: {reason}")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embeddings of a model, whichever way its config.json spells them."""

    theta: int
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The further values of a kind other than "default" (factor, ...)."""


def rope(config: HfConfig) -> Rope:
    """Return the rotary embeddings from ``rope_parameters``, or ``rope_theta``/``rope_scaling``.

    Transformers 5 writes the first spelling, published checkpoints mostly have the second. There
    is no default for the base: the implementations of one model disagree about it.
    """
    merged: dict[str, Any] = {
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    given = [merged.pop("rope_theta", None), config.get("rope_theta")]
    bases = {number("rope_theta", base) for base in given if base is not None}
    if len(bases) != 1:
        found = f"gives {sorted(bases)}" if bases else "gives neither"
        raise CheckpointError(
            f"config.json must give one base of the rotary embeddings, as rope_theta or as "
            f"rope_parameters.rope_theta, and {found}"
        )
    theta = bases.pop()
    if theta != int(theta):
        raise CheckpointError(f"rope_theta is {theta!r}: Megatron's --rotary-base is an integer")
    old_kind = merged.pop("type", "default")
    kind = merged.pop("rope_type", old_kind)
    return Rope(int(theta), str(kind), merged)
