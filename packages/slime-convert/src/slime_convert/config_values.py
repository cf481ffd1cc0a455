"""Which values a config.json may have under the keys that are read, whatever its family.

A size without a bound would be built: a table of parameters has a line for each layer and expert.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from slime_convert.rules import HfConfig

MOST_EXPERTS = 1_000_000
"""Of all layers together; the largest published models have some 25,000."""
_MOST = 2**31 - 1
_MOST_LAYERS = 10_000
_LARGEST = 1e30
_SHOWN = 60
"""Characters of a value that are told."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value, in words and as a test; null is what a key that is absent has."""

    needed: str
    fits: Callable[[Any], bool]


def _whole(least: int, most: int = _MOST) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Kind(f"a whole number from {least:,} to {most:,}", fits)


def is_number(value: Any) -> bool:
    """Return whether it is a number that can be computed with, neither infinite nor NaN."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and -_LARGEST < value < _LARGEST


def _list_of(what: str, *types: type) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, list) and all(type(item) in types for item in value)

    return Kind(f"a list of {what}", fits)


_SIZE, _COUNT = _whole(1), _whole(0)
_LAYERS, _EXPERTS = _whole(1, _MOST_LAYERS), _whole(1, _MOST_LAYERS)
_SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
_NUMBER = Kind("a number above 0", lambda value: is_number(value) and value > 0)
_TEXTS = _list_of("texts", str)

KINDS: dict[str, Kind] = {
    "num_hidden_layers": _LAYERS,
    "first_k_dense_replace": _COUNT,
    "decoder_sparse_step": _SIZE,
    "num_nextn_predict_layers": _COUNT,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "num_attention_heads": _SIZE,
    "num_key_value_heads": _SIZE,
    "head_dim": _SIZE,
    "vocab_size": _SIZE,
    "max_position_embeddings": _SIZE,
    "q_lora_rank": _SIZE,
    "kv_lora_rank": _SIZE,
    "qk_nope_head_dim": _SIZE,
    "qk_rope_head_dim": _SIZE,
    "v_head_dim": _SIZE,
    "num_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "n_shared_experts": _COUNT,
    "num_experts_per_tok": _SIZE,
    "moe_intermediate_size": _SIZE,
    "n_group": _COUNT,
    "topk_group": _COUNT,
    "rms_norm_eps": _NUMBER,
    "rope_theta": _NUMBER,
    "partial_rotary_factor": _NUMBER,
    "routed_scaling_factor": _NUMBER,
    "tie_word_embeddings": _SWITCH,
    "attention_bias": _SWITCH,
    "mlp_bias": _SWITCH,
    "use_qk_norm": _SWITCH,
    "use_sliding_window": _SWITCH,
    "norm_topk_prob": _SWITCH,
    "rope_interleave": _SWITCH,
    "architectures": _TEXTS,
    "layer_types": _TEXTS,
    "mlp_layer_types": _TEXTS,
    "mlp_only_layers": _list_of("whole numbers", int),
}
"""By key; what a model needs of them is its family's to say."""


def complaints(config: HfConfig) -> Iterator[str]:
    """Yield a text for every value that no model of a known family can have."""
    wrong = False
    for key, kind in KINDS.items():
        value = config.get(key)
        if value is not None and not kind.fits(value):
            wrong = True
            yield f"{key} = {shown(value)}, and {kind.needed} is needed"
    if not wrong:
        yield from _too_many_experts(config)


def _too_many_experts(config: HfConfig) -> Iterator[str]:
    layers = config.get("num_hidden_layers") or 0
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if layers * (config.get(key) or 0) > MOST_EXPERTS:
            yield (
                f"num_hidden_layers = {layers} and {key} = {config[key]}, and at most "
                f"{MOST_EXPERTS:,} experts in all layers together are needed"
            )


def shown(value: Any) -> str:
    """Return a value as text for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
