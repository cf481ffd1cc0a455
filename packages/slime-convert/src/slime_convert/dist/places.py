"""Where a Megatron checkpoint keeps each parameter: its key, and its index among stacked ones.

Megatron numbers layers and experts by leading dimensions of one tensor, not by names::

    decoder.layers.3.mlp.linear_fc2.weight         [h, f]
        -> decoder.layers.mlp.linear_fc2.weight    [layers, h, f] at index (3,)
    decoder.layers.3.mlp.experts.local_experts.7.linear_fc2.weight
        -> decoder.layers.mlp.experts.experts.linear_fc2.weight
           [layers, experts, h, f] at index (3, 7)

Layers that are not all alike (some with experts, some without) keep their number in the name.

Source: ``sharded_state_dict`` of ``megatron.core.transformer`` (transformer_block, moe.experts).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slime_convert.rules import Parameter, Split

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")
_FUSED_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
"""Norms are stored under the name they have where they are fused with the linear layer behind."""
_NAMES_OF_TRANSFORMER_ENGINE = {
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",  # before experts
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",  # before other MLPs
    "self_attention.q_layernorm.weight": "self_attention.linear_q_up_proj.layer_norm_weight",
    "self_attention.kv_layernorm.weight": "self_attention.linear_kv_up_proj.layer_norm_weight",
}
"""Norms that Megatron stores under another name if its modules are those of Transformer Engine.

Source: ``megatron.core.models.gpt.gpt_layer_specs``, where the two kinds of layers are specified.
"""
_IN_LAYER = re.compile(r"^(decoder\.layers\.(?:\d+\.)?)(.*)$")


@dataclass(frozen=True, slots=True)
class Place:
    """A parameter's part of a checkpoint's tensor."""

    key: str
    index: tuple[int, ...]
    """Along the leading dimensions: layer, expert, both or neither."""
    dims: tuple[int, ...]
    """The sizes of these dimensions."""
    layer: int | None
    """The decoder layer it belongs to."""
    has_state: bool
    """Whether Megatron keeps an (empty) object of extra state beside it."""

    @property
    def state_key(self) -> str:
        """Name of the extra state."""
        module = self.key.rpartition(".")[0]
        offset = ".".join(map(str, self.index or (0,)))
        shape = ".".join(map(str, self.dims or (1,)))
        return f"{module}._extra_state/shard_{offset}_{shape}"


def place(parameter: Parameter, arguments: Mapping[str, Any]) -> Place:
    """Return where ``parameter`` of a model with these Megatron arguments is kept."""
    key, index, dims = parameter.name, (), ()
    layer = None
    if match := _LAYER.match(key):
        layer = int(match[1])
        if layers_are_alike(arguments):
            key = f"decoder.layers.{key[match.end() :]}"
            index, dims = (layer,), (int(arguments["num_layers"]),)
    if match := _EXPERT.search(key):
        key = f"{key[: match.start()]}.experts.{key[match.end() :]}"
        index, dims = (*index, int(match[1])), (*dims, int(arguments["num_experts"]))
    if not arguments.get("multi_latent_attention"):
        key = _fused_norm(key)
    return Place(key, index, dims, layer, _has_state(parameter))


def named_by_transformer_engine(key: str) -> str | None:
    """Return the other name that a checkpoint may have for ``key``; None: it has none."""
    match = _IN_LAYER.match(key)
    other = _NAMES_OF_TRANSFORMER_ENGINE.get(match[2]) if match else None
    return f"{match[1]}{other}" if match and other else None


def layers_are_alike(arguments: Mapping[str, Any]) -> bool:
    """Return whether all layers have the same modules: all with experts or none."""
    freq = arguments.get("moe_layer_freq", 1)
    return str(freq) == "1"


def _fused_norm(key: str) -> str:
    match = _IN_LAYER.match(key)
    if match is None or match[2] not in _FUSED_NORMS:
        return key
    return match[1] + _FUSED_NORMS[match[2]]


def _has_state(parameter: Parameter) -> bool:
    """Parallel linear layers have it, but for the output layer."""
    module, _, kind = parameter.name.rpartition(".")
    linear = module.rpartition(".")[2].startswith("linear_")
    return linear and kind == "weight" and parameter.split is not Split.REPLICATED
