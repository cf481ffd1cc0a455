"""The whole training state in Megatron's distributed checkpoint format, resharded on load.

A checkpoint holds, besides Megatron's files, under these names:

    model / model0, model1, ...   parameters, by names and shapes of the whole model
    optimizer                     main parameters and moments in the shape of the parameters
                                  ("fully reshardable"), so that TP, PP and DP may change
    opt_param_scheduler           samples seen, and the schedule they were seen under
    rng_state                     every generator of every rank, for a run with the same ranks
    slime                         what wrote it: the architecture, the layout, the optimizer

``save`` writes into a directory that the driver makes visible once it is complete.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from slime_core.errors import CheckpointError
from torch.distributed.checkpoint.api import CheckpointException

from slime_megatron.mcore import patches
from slime_megatron.mcore.checkpoints import identity, random_state, schedule
from slime_megatron.mcore.checkpoints.pending_save import PendingSave, storages
from slime_megatron.mcore.optimizer import adam_state
from slime_megatron.mcore.ranks.agreement import first_failure, reason
from slime_megatron.mcore.startup.quiet import quiet
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.tensors import settle, unwrap

logger = logging.getLogger(__name__)


@torch.no_grad()
def save(
    state: TrainState,
    directory: Path,
    iteration: int,
    *,
    asynchronous: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> PendingSave | None:
    """Write the state after ``iteration`` into the empty ``directory``; every rank calls it.

    With ``asynchronous`` the state is copied now and written while training goes on: the directory
    is complete when ``finish`` of the result has returned True. Otherwise it is on return, which
    is None. ``extra``: further plain data, the same on every rank, for ``read_extra``.

    ``--no-save-optim`` and ``--no-save-rng`` leave out what they name.
    """
    metadata = _metadata(state)
    content = _model_content(state, metadata)
    content |= {"iteration": iteration, "extra": dict(extra or {})}
    if not state.args.no_save_optim and state.optimizer is not None:
        adam_state.prime(state.optimizer)
        content["opt_param_scheduler"] = state.scheduler.state_dict()
        described = _as_the_optimizer_sees_it(state, content, metadata)
        content["optimizer"] = state.optimizer.sharded_state_dict(described, metadata=metadata)
    if not state.args.no_save_rng:
        content["rng_state"] = _rng_object(random_state.capture())
    pending = _start_writing(
        content, directory, metadata, live=storages(state) if asynchronous else frozenset()
    )
    if asynchronous:
        return pending
    pending.finish(wait=True)
    return None


@torch.no_grad()
def save_model(state: TrainState, directory: Path) -> None:
    """Write the parameters alone, as they are now, into the empty ``directory``.

    For models besides the trained one that change in the course of a run (a reference that follows
    the policy): put the snapshot in, save, and read it back with ``load_model``.
    """
    metadata = _metadata(state)
    content = _model_content(state, metadata)
    content["slime"] |= {"optimizer": None, "rng": False}
    _start_writing(content, directory, metadata, live=frozenset()).finish(wait=True)


@torch.no_grad()
def load(state: TrainState, directory: Path) -> int:
    """Continue from ``directory``; return the iteration it was saved after.

    Every rank calls it, on any layout. Generators continue only where there are the same ranks as
    before; otherwise they are seeded anew. ``--no-load-optim`` and ``--no-load-rng`` leave out what
    they name; ``--finetune`` takes the weights alone and returns -1, so that the next iteration is
    the first.

    Raises:
        CheckpointError: the checkpoint is of another model or optimizer, or damaged.
    """
    saved = _read_common(directory)
    wants_optimizer = not (state.args.no_load_optim or state.args.finetune)
    same_ranks = identity.same_layout(saved)
    wants_rng = not (state.args.no_load_rng or state.args.finetune)
    metadata = _metadata(state)
    wanted = _model(state, metadata)
    if wants_optimizer:
        identity.check_optimizer(state, saved, directory)
        schedule.check(state, saved["opt_param_scheduler"], directory)
        adam_state.prime(state.optimizer)
        described = _as_the_optimizer_sees_it(state, wanted, metadata)
        wanted["optimizer"] = state.optimizer.sharded_state_dict(
            described, is_loading=True, metadata=metadata
        )
    identity.check_model(state, saved, wanted, directory)
    if wants_rng and same_ranks and saved["slime"]["rng"]:
        wanted["rng_state"] = _rng_object(None)
    loaded = _read(wanted, directory)
    _into_model(state, loaded)
    if wants_optimizer:
        schedule.align_groups(state, loaded["optimizer"])
        adam_state.load(state.optimizer, loaded["optimizer"])
        schedule.load(state, saved["opt_param_scheduler"])
    else:
        state.optimizer.reload_model_params()
    iteration = -1 if state.args.finetune else int(saved["iteration"])
    if "rng_state" in wanted:
        random_state.restore(loaded["rng_state"])
    elif wants_rng:
        _reseed(state, iteration, directory)
    return iteration


@torch.no_grad()
def load_model(state: TrainState, directory: Path) -> None:
    """Take the parameters alone from ``directory``; optimizer and generators stay as they are.

    For models besides the trained one, such as ``--ref-load``: put them aside with ``Snapshots``.
    """
    saved = _read_common(directory)
    wanted = _model(state, _metadata(state))
    identity.check_model(state, saved, wanted, directory)
    _into_model(state, _read(wanted, directory))


def read_extra(directory: Path) -> dict[str, Any]:
    """What ``save`` was given as ``extra``."""
    return dict(_read_common(directory).get("extra", {}))


def _model_content(state: TrainState, metadata: dict[str, Any]) -> dict[str, Any]:
    settle(state.chunks)
    return {"slime": identity.describe(state), **_model(state, metadata)}


def _start_writing(
    content: dict[str, Any], directory: Path, metadata: dict[str, Any], *, live: frozenset[int]
) -> PendingSave:
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is not there on rank {dist.get_rank()}: --save must name a directory "
            "that the driver and every trainer rank see"
        )
    patches.collect_write_results_in_process()
    patches.silence_async_strategy_notice()
    with quiet():
        request: Any = dist_checkpointing.save(
            content,
            str(directory),
            async_sharded_save=True,
            async_strategy="mcore",
            content_metadata={k: v for k, v in metadata.items() if k != "dp_cp_group"},
        )
    return PendingSave(request, live)


def _metadata(state: TrainState) -> dict[str, Any]:
    """How Megatron is to describe the state; the same for saving and loading."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": (
            state.args.distrib_optim_fully_reshardable_mem_efficient
        ),
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _model_keys(state: TrainState) -> list[str]:
    if len(state.chunks) == 1:
        return ["model"]
    return [f"model{index}" for index in range(len(state.chunks))]


def _model(state: TrainState, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        key: unwrap(chunk).sharded_state_dict(metadata=metadata)
        for key, chunk in zip(_model_keys(state), state.chunks, strict=True)
    }


def _as_the_optimizer_sees_it(
    state: TrainState, model: dict[str, Any], metadata: dict[str, Any]
) -> dict[str, Any]:
    """The model by which its moments are named: one by one where some weights are frozen.

    Megatron stacks layers into one tensor, and a layer's experts. Of moments that only some of them
    have that would be a tensor with holes, which it does not write.
    """
    if not state.partly_trained:
        return model
    apart = {"non_homogeneous_layers": True, "singleton_local_shards": True}
    return _model(state, metadata | apart)


def _into_model(state: TrainState, loaded: dict[str, Any]) -> None:
    for key, chunk in zip(_model_keys(state), state.chunks, strict=True):
        unwrap(chunk).load_state_dict(loaded[key], strict=True)


def _rng_object(data: dict[str, Any] | None) -> ShardedObject:
    world, rank = dist.get_world_size(), dist.get_rank()
    return ShardedObject("rng_state", data, (world,), (rank,), replica_id=0)


def _reseed(state: TrainState, iteration: int, directory: Path) -> None:
    seed = random_state.reseed(
        state.args.seed, iteration, parallel_state.get_pipeline_model_parallel_rank()
    )
    if dist.get_rank() == 0:
        logger.info(
            "%s holds no random states for this layout: generators are seeded with %d",
            directory,
            seed,
        )


def _read_common(directory: Path) -> dict[str, Any]:
    if not dist_checkpointing.check_is_distributed_checkpoint(str(directory)):
        raise CheckpointError(
            f"{directory} is no Megatron distributed checkpoint (it has no metadata.json): give "
            "--load a directory with latest_checkpointed_iteration.txt, as --save wrote it; "
            "Hugging Face weights are given with --hf-checkpoint or --ref-load"
        )
    try:
        with quiet():
            return dist_checkpointing.load_common_state_dict(str(directory))
    except (CheckpointException, CheckpointingException, OSError, RuntimeError) as error:
        raise CheckpointError(f"{directory} is damaged; {reason(error)}") from error


def _read(wanted: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Megatron's load; a file that one rank cannot read is an error on every rank."""
    loaded: Any = None
    failure: BaseException | None = None
    try:
        with quiet():
            loaded = dist_checkpointing.load(wanted, str(directory))
    except (CheckpointException, Exception) as error:  # the former is no Exception
        failure = error
    told = first_failure(failure)
    if told is not None:
        raise CheckpointError(f"{directory} cannot be read; {told}") from failure
    return loaded
