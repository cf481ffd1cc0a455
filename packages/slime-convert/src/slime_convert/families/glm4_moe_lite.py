"""GLM-4.7-Flash: the layers of DeepSeek V3, which of them have experts given as a list.

The layer after the last one predicts a further token; it is not trained, and carried over unchanged
into checkpoints that are written.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from slime_core.errors import CheckpointError

from slime_convert.families import deepseek_v3
from slime_convert.hf_config import require_sizes
from slime_convert.rules import Condition, HfConfig, Index


def as_deepseek(config: HfConfig) -> HfConfig:
    """Return the config with ``first_k_dense_replace``, from ``mlp_layer_types`` if that is given.

    With neither, the first layer is dense; without groups of experts, there is one. Both are so in
    transformers.
    """
    require_sizes(config, "num_hidden_layers")
    groups = {key: config.get(key) or 1 for key in ("n_group", "topk_group")}
    config = {**config, **groups}
    kinds = config.get("mlp_layer_types")
    counted = config.get("first_k_dense_replace")
    if kinds is None:
        return {**config, "first_k_dense_replace": 1 if counted is None else counted}
    dense = list(kinds).count("dense")
    expected = ["dense"] * dense + ["sparse"] * (config["num_hidden_layers"] - dense)
    if list(kinds) != expected or counted not in (None, dense):
        raise CheckpointError(
            f"config.json gives mlp_layer_types {kinds} and first_k_dense_replace {counted}: only "
            "dense layers followed by sparse ones, as many as num_hidden_layers, are implemented"
        )
    return {**config, "first_k_dense_replace": dense}


def _reading[T](function: Callable[[HfConfig], T]) -> Callable[[HfConfig], T]:
    return lambda config: function(as_deepseek(config))


def _holds(condition: Condition, config: HfConfig, index: Index) -> bool:
    return condition(as_deepseek(config), index)


def arguments(config: HfConfig) -> dict[str, Any]:
    """Return the Megatron arguments."""
    return deepseek_v3.arguments(as_deepseek(config))


FAMILY = replace(
    deepseek_v3.FAMILY,
    model_type="glm4_moe_lite",
    title="GLM-4.7-Flash",
    rules=tuple(replace(r, when=partial(_holds, r.when)) for r in deepseek_v3.FAMILY.rules),
    arguments=arguments,
    dims=_reading(deepseek_v3.FAMILY.dims),
    counts=_reading(deepseek_v3.FAMILY.counts),
)
