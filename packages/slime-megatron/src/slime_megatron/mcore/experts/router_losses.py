"""Losses on routers (``--moe-aux-loss-coeff``, ``--moe-z-loss-coeff``) beside the objective.

Megatron adds each layer's loss of a microbatch to the gradient times the microbatch's rows, and
divides everything by the tokens of a step later on. Here nothing is divided later on (see
``step``), so the rows of the step are divided by where the loss enters: what is added is the mean
over all rows of the step, padding included, whatever the objective is divided by.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from megatron.core.utils import get_model_config

from slime_megatron.iteration.passes import TrainItem
from slime_megatron.mcore.state import TrainState


def average_over_rows(state: TrainState, items: Sequence[TrainItem]) -> None:
    """Scale the losses on routers for a step over ``items``; nothing without such losses.

    Collective over data- and context-parallel ranks.
    """
    if not _has_router_losses(state.args):
        return
    count = sum(item.microbatch.tokens.numel() for item in items)
    rows = torch.tensor(float(count), device=state.device)
    dist.all_reduce(rows, group=parallel_state.get_data_parallel_group(with_context_parallel=True))

    def scale() -> torch.Tensor:
        return state.optimizer.scale_loss(torch.ones(1, device=state.device)) / rows

    config: Any = get_model_config(state.chunks[0])
    config.moe_grad_scale_func = scale
    get_moe_metrics_tracker().clear()


def _has_router_losses(args: Any) -> bool:
    balancing = args.moe_aux_loss_coeff
    listed = balancing if isinstance(balancing, list | tuple) else [balancing]
    return bool(args.num_experts) and (any(listed) or bool(args.moe_z_loss_coeff))
