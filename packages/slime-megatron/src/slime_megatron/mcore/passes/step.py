"""One optimizer step over the microbatches of a data-parallel rank.

The gradient of a step is that of

    (1 / divisor) * sum over ranks, microbatches, tokens of  loss_t

however tokens are cut into microbatches, ranks and chunks. A ``TrainItem``'s loss is the sum over
one microbatch on one rank; it is divided by the step's global divisor here. Megatron would scale
further: by 1 / microbatches and by the data-parallel mean. Its ``calculate_per_token_loss`` switch,
always on in the model's config (``model.transformer_config``), turns both off and adds gradients
over data- and context-parallel ranks; the token count it would then divide by is not passed on
(``megatron_optimizer.build``).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from slime_core.losses.report import finish_metrics
from torch import Tensor

from slime_megatron.iteration.passes import Entropy, StepResult, StepSize, TrainItem
from slime_megatron.mcore.experts.router_losses import average_over_rows, router_metrics
from slime_megatron.mcore.optimizer.megatron_optimizer import NonFiniteGradientError
from slime_megatron.mcore.passes.forward import ScoreConfig, run_model, run_schedule
from slime_megatron.mcore.products.weight_gradients import mark_added_elsewhere
from slime_megatron.mcore.ranks.last_stage import is_last_stage
from slime_megatron.mcore.state import TrainState


def train_step(
    state: TrainState,
    items: Sequence[TrainItem],
    config: ScoreConfig,
    *,
    size: StepSize,
    entropy: Entropy,
    logits: bool = False,
) -> StepResult:
    """Forward and backward over ``items``, then update; all ranks together.

    A step whose gradient norm is infinite or not a number changes nothing and says so.
    """
    wrapped: list[Any] = list(state.chunks)
    for chunk in wrapped:
        chunk.zero_grad_buffer()
    mark_added_elsewhere(wrapped)  # zeroing the buffers unmarks them
    state.optimizer.zero_grad()

    def forward_step(stream: Iterator[TrainItem], model: torch.nn.Module) -> Any:
        item = next(stream).to(state.device)
        output = run_model(model, item.microbatch, config, entropy=entropy, logits=logits)

        def loss(scores: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            result = item.loss(scores)
            no_tokens = torch.zeros([], dtype=torch.int, device=state.device)
            return result.loss / size.divisor, no_tokens, dict(result.metrics)

        return output, loss

    average_over_rows(state, items)
    collected = run_schedule(state, items, forward_step, forward_only=False)
    rates = tuple(group["lr"] for group in state.optimizer.param_groups)
    updated, grad_norm = _update(state)
    state.scheduler.step(increment=size.num_samples)
    names = tuple(collected[0]) if collected else ()
    if logits:  # a user's loss, which may say something else of every microbatch
        names = _agreed_names(collected)
    metrics = _merged(collected, names, size.divisor)
    routers = router_metrics(state, len(items))
    return StepResult(metrics and metrics | routers, grad_norm, updated, rates)


def _update(state: TrainState) -> tuple[bool, float]:
    """(whether the weights changed, gradient norm before clipping)."""
    try:
        updated, grad_norm, _ = state.optimizer.step()
    except NonFiniteGradientError as error:
        return False, error.norm
    return bool(updated), float("nan") if grad_norm is None else float(grad_norm)


def _merged(
    collected: Sequence[dict[str, Tensor]], names: Sequence[str], divisor: float
) -> dict[str, float]:
    """Add the sums over microbatches and data- and context-parallel ranks, then divide."""
    if not is_last_stage():
        return {}
    zero = next(x for found in collected for x in found.values()).new_zeros(()).double()
    rows = [torch.stack([found.get(n, zero).double() for n in names]) for found in collected]
    sums = torch.stack(rows).sum(0)
    dist.all_reduce(sums, group=_sharers())
    return finish_metrics(dict(zip(names, (sums / divisor).tolist(), strict=True)))


def _agreed_names(collected: Sequence[dict[str, Tensor]]) -> tuple[str, ...]:
    """What any microbatch of any rank reports: a user's loss is not asked about empty ones."""
    if not is_last_stage():
        return ()
    names = {name for found in collected for name in found}
    everywhere: list[Any] = [()] * dist.get_world_size(_sharers())
    dist.all_gather_object(everywhere, names, group=_sharers())
    return tuple(sorted({name for found in everywhere for name in found}))


def _sharers() -> Any:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)
