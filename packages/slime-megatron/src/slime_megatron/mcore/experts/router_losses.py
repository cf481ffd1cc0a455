"""Losses on routers (``--moe-aux-loss-coeff``, ``--moe-z-loss-coeff``) beside the objective.

Megatron adds each layer's loss of a microbatch to the gradient times the microbatch's rows, and
divides everything by the tokens of a step later on. Here nothing is divided later on (see
``step``), so the rows of the step are divided by where the loss enters: what is added is the mean
over all rows of the step, padding included, whatever the objective is divided by.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from megatron.core.utils import get_model_config

from slime_megatron.iteration.passes import TrainItem
from slime_megatron.mcore.state import TrainState

_BALANCING = {
    "aux_loss": "load_balancing_loss",
    "seq_aux_loss": "seq_load_balancing_loss",
    "global_aux_loss": "global_load_balancing_loss",
}


def average_over_rows(state: TrainState, items: Sequence[TrainItem]) -> None:
    """Scale the losses on routers for a step over ``items``; nothing without such losses.

    Collective over data- and context-parallel ranks.
    """
    if not any(_router_losses(state.args)):
        return
    count = sum(item.microbatch.tokens.numel() for item in items)
    rows = torch.tensor(float(count), device=state.device)
    dist.all_reduce(rows, group=parallel_state.get_data_parallel_group(with_context_parallel=True))

    def scale() -> torch.Tensor:
        return state.optimizer.scale_loss(torch.ones(1, device=state.device)) / rows

    config: Any = get_model_config(state.chunks[0])
    config.moe_grad_scale_func = scale
    get_moe_metrics_tracker().clear()


def router_metrics(state: TrainState, num_microbatches: int) -> dict[str, float]:
    """Every loss on routers of the step behind us, without its coefficient, by Megatron's name.

    The mean over layers of experts, microbatches and ranks with samples of their own. Collective
    over all ranks; of use on the last pipeline stage, which has layers of experts where any has.
    """
    args, tracker = state.args, get_moe_metrics_tracker()
    names = [*_router_losses(args)]
    if not names:
        return {}
    for name in names:
        tracker.ensure_initialized(name, args.num_layers, state.device)
    found: dict[str, torch.Tensor] = {}
    tracker.report(
        loss_scale=1 / num_microbatches,
        iteration=0,
        track_names=names,
        num_layers=args.num_layers,
        moe_layer_freq=args.moe_layer_freq,
        total_loss_dict=found,
    )
    return {name: float(value) for name, value in found.items()}


def _router_losses(args: Any) -> Iterator[str]:
    """What Megatron calls those that have a weight."""
    if not args.num_experts:
        return
    kinds, weights = args.moe_router_load_balancing_type, args.moe_aux_loss_coeff
    kinds = kinds if isinstance(kinds, list) else [kinds]
    weights = weights if isinstance(weights, list) else [weights] * len(kinds)
    for kind, weight in zip(kinds, weights, strict=True):
        if kind in _BALANCING and weight:
            yield _BALANCING[kind]
    if args.moe_z_loss_coeff:
        yield "z_loss"
