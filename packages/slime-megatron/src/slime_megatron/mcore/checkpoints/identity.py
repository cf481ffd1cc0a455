"""Whose checkpoint is this? What is written down about a run, and compared when it is loaded."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import megatron.core
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from slime_convert import saved_model
from slime_core.errors import CheckpointError

from slime_megatron.mcore.state import TrainState

logger = logging.getLogger(__name__)

_SHOWN = 10


def describe(state: TrainState) -> dict[str, Any]:
    """The architecture, the layout and the optimizer, as plain data."""
    return {
        "megatron_core": megatron.core.__version__,
        "model_type": state.family.model_type,
        "architecture": saved_model.architecture(state.family, _megatron_args(state)),
        "layout": layout(),
        "optimizer": None if state.args.no_save_optim else _optimizer(state),
        "rng": not state.args.no_save_rng,
    }


def layout() -> dict[str, int]:
    """Sizes that decide which rank is which."""
    groups: Any = parallel_state
    return {
        "world": dist.get_world_size(),
        "tensor": groups.get_tensor_model_parallel_world_size(),
        "pipeline": groups.get_pipeline_model_parallel_world_size(),
        "context": groups.get_context_parallel_world_size(),
        "expert": groups.get_expert_model_parallel_world_size(),
        "expert_tensor": groups.get_expert_tensor_parallel_world_size(),
    }


def same_layout(saved: Mapping[str, Any]) -> bool:
    """Whether every rank stands where it stood when the checkpoint was written."""
    return saved.get("slime", {}).get("layout") == layout()


def check_model(
    state: TrainState, saved: Mapping[str, Any], wanted: dict[str, Any], directory: Path
) -> None:
    """Raise one ``CheckpointError`` for all that keeps the tensors in ``wanted`` from loading.

    Collective: what one pipeline stage misses, every rank reports.
    """
    problems = saved_model.differences(saved, state.family, _megatron_args(state))
    everywhere: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everywhere, list(_tensor_problems(wanted, directory)))
    tensors = sorted({problem for problems in everywhere for problem in problems})
    if tensors and not problems:
        more = f" and {len(tensors) - _SHOWN} more" if len(tensors) > _SHOWN else ""
        problems.append(f"tensors: {', '.join(tensors[:_SHOWN])}{more}")
    if problems:
        raise CheckpointError(
            f"{directory} is a checkpoint of another model than --hf-checkpoint describes: "
            f"{'; '.join(problems)}"
        )


def check_optimizer(state: TrainState, saved: Mapping[str, Any], directory: Path) -> None:
    """Raise ``CheckpointError`` when the optimizer's state is absent or of another kind."""
    theirs, ours = saved.get("slime", {}).get("optimizer"), _optimizer(state)
    if theirs is None:
        raise CheckpointError(
            f"{directory} holds no optimizer state: give --no-load-optim to start with a fresh one"
        )
    different = differing(theirs, ours)
    if different:
        raise CheckpointError(
            f"the optimizer of {directory} is another: {'; '.join(different)}. Give the same flags "
            "as when it was saved, or --no-load-optim to start with a fresh one"
        )


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What a checkpoint has otherwise than this run, of all that ``ours`` names."""
    return [
        f"{name} is {theirs.get(name)!r} there and {value!r} here"
        for name, value in ours.items()
        if theirs.get(name) != value
    ]


def _megatron_args(state: TrainState) -> dict[str, Any]:
    return state.family.megatron_args(state.hf_config)


def _optimizer(state: TrainState) -> dict[str, Any]:
    args = state.args
    own_groups = (
        args.expert_model_parallel_size > 1
        or args.expert_tensor_parallel_size != args.tensor_model_parallel_size
    )
    return {
        "optimizer": args.optimizer,
        "use_distributed_optimizer": args.use_distributed_optimizer,
        "bf16": args.bf16,
        "weights frozen by name": state.partly_trained,
        # Then Megatron keeps their state in an optimizer of its own.
        "experts in groups of their own": bool(args.num_experts) and own_groups,
    }


def _tensor_problems(wanted: dict[str, Any], directory: Path) -> Iterator[str]:
    """What is missing or has another shape, as this rank sees it."""
    present: Mapping[str, Any] = dist_checkpointing.load_tensors_metadata(str(directory))
    built: Any = dict_list_map_outplace(_build, wanted)
    seen: set[str] = set()
    for tensor in _sharded_tensors(built):
        if tensor.key in seen:
            continue
        seen.add(tensor.key)
        if tensor.key not in present:
            yield f"{tensor.key} is missing"
            continue
        there, here = tuple(present[tensor.key].global_shape), tuple(tensor.global_shape)
        first = 1 if tensor.allow_shape_mismatch else 0  # vocabulary padding differs by layout
        if there[first:] != here[first:]:
            yield f"{tensor.key} is {list(there)} there and {list(here)} here"


def _build(value: Any) -> Any:
    return value.build() if isinstance(value, ShardedTensorFactory) else value


def _sharded_tensors(built: Any) -> Iterator[ShardedTensor]:
    for value in nested_values(built):
        if isinstance(value, ShardedTensor):
            yield value
        elif isinstance(value, dict | list):
            yield from _sharded_tensors(value)
