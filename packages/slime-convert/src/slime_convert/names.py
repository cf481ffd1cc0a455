"""Names as one pipeline stage sees them against names counted over the whole model."""

import re

_WRAPPER = re.compile(r"^(?:module\.)+")
_LAYER = re.compile(r"^(decoder\.layers\.)(\d+)(\..*)$")
_EXPERT = re.compile(r"^(.*\.experts\.local_experts\.)(\d+)(\..*)$")


def global_name(local_name: str, layer_offset: int = 0, *, expert_offset: int = 0) -> str:
    """Return the name with layer and expert counted over the whole model.

    Leading ``module.`` (of wrappers such as DistributedDataParallel) is dropped.
    ``layer_offset`` is the number of decoder layers before this chunk, ``expert_offset`` the
    number of routed experts on the expert-parallel ranks before this one.
    """
    name = _WRAPPER.sub("", local_name)
    return _shift(_EXPERT, _shift(_LAYER, name, layer_offset), expert_offset)


def local_name(global_name: str, layer_offset: int = 0, *, expert_offset: int = 0) -> str:
    """Return the name inside a chunk: the inverse of ``global_name``, without wrappers."""
    return _shift(_EXPERT, _shift(_LAYER, global_name, -layer_offset), -expert_offset)


def expert_of(name: str) -> int | None:
    """Return which routed expert a parameter belongs to, as its name counts them; None: to none."""
    found = _EXPERT.match(name)
    return int(found[2]) if found else None


def layer_offset(
    num_layers: int, *, pp_rank: int, pp_size: int, vpp_stage: int = 0, vpp_size: int = 1
) -> int:
    """Return how many decoder layers come before a chunk when all chunks hold equally many.

    Chunk v of stage p holds the layers from v * L / V + p * L / (P V), with P stages of V chunks.
    Models with uneven stages know their offsets themselves (``layer.layer_number - 1``).

    Source: ``megatron.core.transformer.transformer_layer.get_transformer_layer_offset``.
    """
    per_chunk, rest = divmod(num_layers, pp_size * vpp_size)
    if rest:
        raise ValueError(
            f"{num_layers} layers do not split evenly over {pp_size} pipeline stages of "
            f"{vpp_size} chunks"
        )
    return per_chunk * (vpp_stage * pp_size + pp_rank)


def _shift(pattern: re.Pattern[str], name: str, offset: int) -> str:
    def moved(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) + offset}{match[3]}"

    return pattern.sub(moved, name)
