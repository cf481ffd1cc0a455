"""The registry: which model families slime can train, found by ``model_type`` of config.json."""

from pathlib import Path

from slime_core.errors import CheckpointError

from slime_convert import hf_config
from slime_convert.config_values import complaints, shown
from slime_convert.families import (
    deepseek_v3,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    llama,
    mimo,
    qwen2,
    qwen3,
    qwen3_moe,
)
from slime_convert.families.scored import classifier_config, scored
from slime_convert.family import Family
from slime_convert.rules import HfConfig

__all__ = ["FAMILIES", "Family", "classifier_config", "find", "read_config", "scored"]

_ALL = (
    deepseek_v3.FAMILY,
    deepseek_v3.KIMI_K2,
    glm4.FAMILY,
    glm4_moe.FAMILY,
    glm4_moe_lite.FAMILY,
    llama.FAMILY,
    mimo.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}
"""Every family by its ``model_type``."""


def read_config(directory: Path | str) -> HfConfig:
    """Return the values of ``directory``/config.json.

    Raises:
        CheckpointError: there is none, it is no object of JSON, or it is of a known family and one
            of its values is none that such a model can have.
    """
    config = hf_config.read_config(directory)
    if _known(config):
        _check_values(config, f"{Path(directory) / 'config.json'}")
    return config


def find(config: HfConfig) -> Family:
    """Return the family of the model that this config.json describes."""
    if family := _known(config):
        _check_values(config, "config.json")
        return family
    model_type = config.get("model_type")
    given = "has no model_type" if model_type is None else f"says model_type = {shown(model_type)}"
    raise CheckpointError(
        f"config.json {given}; the families that can be trained are: {', '.join(sorted(FAMILIES))}"
    )


def _known(config: HfConfig) -> Family | None:
    model_type = config.get("model_type")
    return FAMILIES.get(model_type) if isinstance(model_type, str) else None


def _check_values(config: HfConfig, path: str) -> None:
    if wrong := "; ".join(complaints(config)):
        raise CheckpointError(f"{path} says {wrong}")
