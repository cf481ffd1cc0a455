"""Which parameters of the whole model this rank holds, and which part of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron.core import parallel_state
from slime_convert.names import global_name
from slime_convert.parameters import ParameterTable
from slime_convert.rules import Parameter
from torch import Tensor, nn

from slime_megatron.mcore.weights.tensors import named_tensors, unwrap


@dataclass(frozen=True, slots=True)
class TensorRanks:
    """This rank's place among those that share a parameter's rows or columns."""

    rank: int
    size: int


def tensor_ranks(parameter: Parameter) -> TensorRanks:
    """The tensor-parallel place for ``parameter``; experts have groups of their own."""
    groups: Any = parallel_state
    if parameter.expert:
        return TensorRanks(
            groups.get_expert_tensor_parallel_rank(),
            groups.get_expert_tensor_parallel_world_size(),
        )
    return TensorRanks(
        groups.get_tensor_model_parallel_rank(), groups.get_tensor_model_parallel_world_size()
    )


def located(chunk: nn.Module, table: ParameterTable) -> Iterator[tuple[Parameter, Tensor]]:
    """Yield every tensor of a model chunk with the parameter of the whole model it is part of."""
    for name, tensor in global_names(chunk):
        yield table.find(name), tensor


def global_names(chunk: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a model chunk by its name, with layers and experts of all ranks."""
    model = unwrap(chunk)
    layers = model.decoder.layers
    layer_offset: int = layers[0].layer_number - 1 if len(layers) else 0
    expert_offset = experts_per_rank(chunk) * parallel_state.get_expert_model_parallel_rank()
    for name, tensor in named_tensors(model):
        yield global_name(name, layer_offset, expert_offset=expert_offset), tensor


def experts_per_rank(chunk: nn.Module) -> int:
    """How many of each layer's routed experts this rank holds; 0 in a model without."""
    experts: int = getattr(unwrap(chunk).config, "num_moe_experts", None) or 0
    return experts // parallel_state.get_expert_model_parallel_world_size()
