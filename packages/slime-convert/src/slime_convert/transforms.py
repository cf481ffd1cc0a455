"""Putting Hugging Face tensors together into full Megatron tensors, and taking them apart again.

Each transform is a pair of functions that are inverse to each other bit for bit: nothing here
computes, tensors are only cut and joined. Any dtype, any device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_convert.rules import Parameter, Transform


def to_megatron(parameter: Parameter, tensors: Sequence[Tensor]) -> Tensor:
    """Return the full Megatron tensor made of ``tensors``, given in the order of ``parameter.hf``.

    The result may share memory with ``tensors`` where nothing had to be joined.
    """
    for expected, tensor in zip(parameter.hf, tensors, strict=True):
        _check_shape(expected.name, tensor, expected.shape)
    return PAIRS[parameter.transform].join(parameter, tensors)


def to_hf(parameter: Parameter, full: Tensor) -> dict[str, Tensor]:
    """Return the Hugging Face tensors, by name, that ``full`` (without padding) is made of.

    The results may be views of ``full``.
    """
    _check_shape(parameter.name, full, parameter.shape)
    parts = PAIRS[parameter.transform].part(parameter, full)
    return {tensor.name: part for tensor, part in zip(parameter.hf, parts, strict=True)}


@dataclass(frozen=True, slots=True)
class Pair:
    """A transform and its inverse."""

    join: Callable[[Parameter, Sequence[Tensor]], Tensor]
    part: Callable[[Parameter, Tensor], Sequence[Tensor]]


def _copy_join(_parameter: Parameter, tensors: Sequence[Tensor]) -> Tensor:
    (tensor,) = tensors
    return tensor


def _copy_part(_parameter: Parameter, full: Tensor) -> Sequence[Tensor]:
    return (full,)


def _stack_join(_parameter: Parameter, tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors))


def _stack_part(parameter: Parameter, full: Tensor) -> Sequence[Tensor]:
    return full.split([tensor.shape[0] for tensor in parameter.hf])


def _qkv_join(parameter: Parameter, tensors: Sequence[Tensor]) -> Tensor:
    """Interleave: with g groups of n query heads, rows [q_1..q_n, k, v] of group 0, then 1, ..."""
    grouped = [x.reshape(parameter.num_query_groups, -1, *x.shape[1:]) for x in tensors]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def _qkv_part(parameter: Parameter, full: Tensor) -> Sequence[Tensor]:
    groups = parameter.num_query_groups
    grouped = full.reshape(groups, -1, *full.shape[1:])
    rows = [tensor.shape[0] // groups for tensor in parameter.hf]
    return [x.flatten(0, 1) for x in grouped.split(rows, dim=1)]


PAIRS = {
    Transform.COPY: Pair(_copy_join, _copy_part),
    Transform.STACK: Pair(_stack_join, _stack_part),
    Transform.QKV: Pair(_qkv_join, _qkv_part),
}


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"`{name}` has shape {list(tensor.shape)}, and config.json implies {list(shape)}"
        )
