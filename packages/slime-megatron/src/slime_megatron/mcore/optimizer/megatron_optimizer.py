"""Megatron's optimizer over the chunks, wired into their config."""

import math
import platform
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import get_model_config
from megatron.training.training import get_megatron_optimizer_config
from slime_core.errors import SlimeError

from slime_megatron.mcore import patches
from slime_megatron.mcore.optimizer import adam_state
from slime_megatron.mcore.optimizer.host_adam import HostAdam, cores_of_each
from slime_megatron.mcore.optimizer.scheduler import scheduler_of
from slime_megatron.mcore.startup.quiet import quiet


class NonFiniteGradientError(SlimeError, FloatingPointError):
    """The gradient norm of a step is infinite or not a number; nothing was updated."""

    def __init__(self, norm: float) -> None:
        super().__init__(f"the gradient norm is {norm} and no weight was changed")
        self.norm = norm


def build(args: Any, chunks: Sequence[torch.nn.Module]) -> tuple[Any, OptimizerParamScheduler]:
    """Optimizer and scheduler for ``chunks``, wired into their config. Collective.

    ``optimizer.step()`` raises ``NonFiniteGradientError`` before touching anything when the norm
    is not finite.
    """
    described: Any = get_megatron_optimizer_config(args)
    config, overrides = described
    patches.answer_cpu_offload(HostAdam)
    patches.clip_in_few_kernels()
    with quiet():
        optimizer = get_megatron_optimizer(
            config,
            cast("Any", list(chunks)),
            config_overrides=overrides,
            use_gloo_process_groups=args.use_gloo_process_groups,
        )
    adam_state.fuse(optimizer)
    _share_cores(args, optimizer)
    _refuse_non_finite(optimizer)
    _connect(args, chunks, optimizer)
    with quiet():
        return optimizer, scheduler_of(args, optimizer)


def _share_cores(args: Any, optimizer: Any) -> None:
    """Ranks of a machine update what is in its memory with all its cores. Collective."""
    if not args.optimizer_cpu_offload or torch.cuda.current_device() == torch.device("cpu"):
        return
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, platform.node())
    for adam in adam_state.hosted(optimizer):
        adam.num_threads = cores_of_each(names.count(platform.node()))


def _refuse_non_finite(optimizer: Any) -> None:
    """Look at the norm between its computation and the update."""
    stock = optimizer.get_grad_norm

    def get_grad_norm() -> float:
        norm = stock()
        if not math.isfinite(norm):
            raise NonFiniteGradientError(norm)
        return norm

    optimizer.get_grad_norm = get_grad_norm


def _connect(args: Any, chunks: Sequence[torch.nn.Module], optimizer: Any) -> None:
    """Tell the pipeline schedules how losses are scaled and gradients finished."""

    def finish(model: list[torch.nn.Module], num_tokens: Any = None, **kwargs: Any) -> None:
        """Reduce gradients; the loss carries its divisor, so the token count is not wanted."""
        finalize_model_grads(model, None, **kwargs)

    config: Any = get_model_config(chunks[0])
    config.grad_scale_func = optimizer.scale_loss
    config.finalize_model_grads_func = finish
    if args.overlap_grad_reduce:
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        if args.overlap_param_gather and args.align_param_gather:
            start = [chunk.start_param_sync for chunk in chunks]
            config.param_sync_func = start if len(start) > 1 else start[0]
