"""The registry: which model families slime can train, found by ``model_type`` of config.json."""

from slime_core.errors import CheckpointError

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
from slime_convert.hf_config import read_config
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


def find(hf_config: HfConfig) -> Family:
    """Return the family of the model that this config.json describes."""
    model_type = hf_config.get("model_type")
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    given = "has no model_type" if model_type is None else f"says model_type = {model_type!r}"
    raise CheckpointError(
        f"config.json {given}; the families that can be trained are: {', '.join(sorted(FAMILIES))}"
    )
