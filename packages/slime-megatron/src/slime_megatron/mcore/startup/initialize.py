"""Process groups, Megatron's parallel state, seeds: what a rank needs before it has a model."""

import gc
import os
import random
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.rerun_state_machine import (
    destroy_rerun_state_machine,
    initialize_rerun_state_machine,
)

from slime_megatron.mcore.startup.quiet import quiet


def initialize(args: Any, *, device: torch.device, rendezvous: str | None = None) -> None:
    """Join the process group, divide it as ``args`` says, seed every generator.

    Collective. gloo on the CPU, NCCL on GPUs, both with ``--distributed-timeout-minutes``. The
    ranks meet at ``rendezvous`` (``tcp://host:port`` or ``file:///path``), else at
    ``MASTER_ADDR``/``MASTER_PORT``; a single rank needs neither. A process group that is already
    there is kept and divided anew.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _join(args, device, rendezvous)
    _divide(args)
    seed_generators(args.seed + 100 * parallel_state.get_pipeline_model_parallel_rank())
    destroy_rerun_state_machine()
    initialize_rerun_state_machine()


def _join(args: Any, device: torch.device, rendezvous: str | None) -> None:
    """Form the group of all ranks."""
    alone = args.world_size == 1 and rendezvous is None
    store = dist.HashStore() if alone else None  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        init_method=None if alone else rendezvous,
        rank=args.rank,
        world_size=args.world_size,
        timeout=timedelta(minutes=args.distributed_timeout_minutes),
    )


def _divide(args: Any) -> None:
    """Build the tensor, context, pipeline and data parallel groups."""
    _dissolve()
    with quiet():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=args.tensor_model_parallel_size,
            pipeline_model_parallel_size=args.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
            context_parallel_size=args.context_parallel_size,
            expert_model_parallel_size=args.expert_model_parallel_size,
            expert_tensor_parallel_size=args.expert_tensor_parallel_size,
            distributed_timeout_minutes=args.distributed_timeout_minutes,
            order="tp-cp-ep-dp-pp",
            create_gloo_process_groups=args.use_gloo_process_groups,
        )


def _dissolve() -> None:
    """End the groups of an earlier layout.

    Megatron only forgets them, and each keeps its threads and sockets until the last model that
    knows it is gone.
    """
    state: Any = parallel_state
    groups = dict.fromkeys(state._global_process_group_list or ())
    for group in groups:
        if group is not None:  # stands for the group of all ranks
            dist.destroy_process_group(group)
    with quiet():
        parallel_state.destroy_model_parallel()
    if groups:
        gc.collect()


def seed_generators(seed: int) -> None:
    """Seed Python, NumPy, torch and Megatron.

    Stages of a pipeline are given different numbers, data-parallel replicas the same.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def set_cpu_threads(device: torch.device, world_size: int) -> None:
    """One thread a rank when several share the machine or a GPU does the arithmetic.

    What is left for the CPU then are small tensors, on which a thread for every core costs up to
    seconds a step; ``OMP_NUM_THREADS`` overrides.
    """
    if "OMP_NUM_THREADS" not in os.environ and (world_size > 1 or device.type == "cuda"):
        torch.set_num_threads(1)


def shutdown() -> None:
    """Leave every process group; safe to call when there is none."""
    destroy_rerun_state_machine()
    if dist.is_initialized():
        _dissolve()
        dist.destroy_process_group()
