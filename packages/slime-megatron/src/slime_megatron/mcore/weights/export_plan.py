"""What is exported of a model, in which order, and where this rank has its parts.

Weights change from one publish to the next; this does not, and takes as long to work out as a small
model takes to be sent. So it is done once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist
from megatron.core import parallel_state
from slime_convert.names import expert_of, local_name
from slime_convert.parameters import ParameterTable
from slime_convert.rules import Parameter
from slime_core.errors import CheckpointError
from torch import Tensor, nn

from slime_megatron.buckets import Piece
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.places import experts_per_rank, located
from slime_megatron.mcore.weights.tensors import unwrap

_plans: WeakKeyDictionary[TrainState, "ExportPlan"] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a tensor is found, whatever takes its place there."""

    module: nn.Module
    name: str


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """One rank's; the pieces are the same on every rank."""

    pieces: tuple[Piece, ...]
    """Every parameter of the model in the order of the table; experts that are divided over ranks
    come last."""
    homes: Mapping[str, _Home]
    """Of the parts that this rank holds, by the name of the piece."""

    def part(self, piece: Piece) -> Tensor:
        """What this rank's part of ``piece`` is now."""
        home = self.homes[piece.name]
        part: Tensor = getattr(home.module, home.name)
        assert (part.dtype, tuple(part.shape)) == (piece.dtype, piece.shape), (
            f"{piece.name} was {piece.dtype} {piece.shape} and is {part.dtype} {tuple(part.shape)}"
        )
        return part.detach()


def plan_of(state: TrainState) -> ExportPlan:
    """The plan of a model; the ranks of a pipeline agree on it when they first ask."""
    plan = _plans.get(state)
    if plan is None:
        plan = _plans[state] = _make(state)
    return plan


def divided_experts() -> bool:
    """Whether routed experts lie on other ranks than the rest of the model."""
    groups: Any = parallel_state
    tensor: int = groups.get_tensor_model_parallel_world_size()
    divided: int = groups.get_expert_model_parallel_world_size()
    return divided > 1 or groups.get_expert_tensor_parallel_world_size() != tensor


def _make(state: TrainState) -> ExportPlan:
    table = state.family.parameters(state.hf_config)
    per_rank = experts_per_rank(state.chunks[0])
    parts = _local_parts(state, table, per_rank)
    homes = _homes(state.chunks)
    return ExportPlan(
        pieces=tuple(_pieces(_alike(table.exported, per_rank), parts)),
        homes={name: homes[id(part)] for name, part in parts.items()},
    )


def _local_parts(state: TrainState, table: ParameterTable, per_rank: int) -> dict[str, Tensor]:
    """This rank's part of every parameter that is exported, by the name of its piece."""
    offset = per_rank * parallel_state.get_expert_model_parallel_rank()
    return {
        local_name(parameter.name, expert_offset=offset): tensor
        for chunk in state.chunks
        for parameter, tensor in located(chunk, table)
        if not parameter.alias
    }


def _homes(chunks: Iterable[nn.Module]) -> dict[int, _Home]:
    """By the identity of the tensor."""
    return {
        id(tensor): _Home(module, name)
        for chunk in chunks
        for module in unwrap(chunk).modules()
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
    }


def _alike(exported: Iterable[Parameter], per_rank: int) -> list[tuple[Parameter, ...]]:
    """The parameters that are exported; with each expert those in its place on other ranks."""
    alike: dict[str, list[Parameter]] = {}
    for parameter in exported:
        expert = expert_of(parameter.name)
        before = 0 if expert is None else expert // per_rank * per_rank
        alike.setdefault(local_name(parameter.name, expert_offset=before), []).append(parameter)
    return [tuple(members) for members in alike.values()]


def _pieces(alike: Iterable[tuple[Parameter, ...]], parts: Mapping[str, Tensor]) -> Iterator[Piece]:
    """Every parameter with the stage that holds it; ``parts`` are this rank's."""
    described = {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()}
    group = parallel_state.get_pipeline_model_parallel_group()
    stages: list[Any] = [None] * parallel_state.get_pipeline_model_parallel_world_size()
    dist.all_gather_object(stages, described, group=group)
    owners = {name: stage for stage, names in reversed(list(enumerate(stages))) for name in names}
    divided = divided_experts()
    pieces = [(members, members[0].expert and divided) for members in alike]
    absent = [members[0].name for members, _ in pieces if members[0].name not in owners]
    if absent:
        raise CheckpointError(f"the model has no parameters {', '.join(absent[:20])}")
    for members, expert in sorted(pieces, key=lambda piece: piece[1]):
        name = members[0].name
        yield Piece(members, owners[name], *stages[owners[name]][name], expert=expert)
