"""Gradients that leave during the backward pass (``--overlap-grad-reduce``), in one order.

Megatron starts to add a group of gradients up over ranks when the last of them is there. Compiled
code hands over the gradients of a piece of a layer at once, in an order that differs from process
to process; where a layer fills more than one group, ranks would then start different sums at the
same time, and get a mixture of them or wait for ever. So a group that is complete waits for those
before it, as in PyTorch's own ``DistributedDataParallel`` (arXiv:2006.15704, section 3.2.3).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn


def reduce_in_order(chunks: Sequence[nn.Module]) -> None:
    """Have every rank start the sums of its gradients in the same order."""
    for chunk in chunks:
        wrapper: Any = chunk
        if wrapper.ddp_config.overlap_grad_reduce:
            _Queue(_as_completed(wrapper))


class _Queue:
    """Starts the sums of ``groups`` one after the other, each once in a backward pass."""

    def __init__(self, groups: Sequence[Any]) -> None:
        self._complete: dict[int, Callable[[], None]] = {}
        self._next = 0
        self._count = len(groups)
        for place, group in enumerate(groups):
            group.start_grad_sync = partial(self._start, place, group, group.start_grad_sync)

    def _start(
        self,
        place: int,
        group: Any,
        start: Callable[..., None],
        force_all_reduce: bool | None = False,
    ) -> None:
        if group.is_first_batch:  # Megatron starts them all after the pass, and waits for each
            start(force_all_reduce=force_all_reduce)
            return
        self._complete[place] = partial(start, force_all_reduce=force_all_reduce)
        while self._next in self._complete:
            self._complete.pop(self._next)()
            self._next = (self._next + 1) % self._count


def _as_completed(wrapper: Any) -> list[Any]:
    """Groups in the order in which the backward pass completes them, later weights first."""
    places = {id(weight): place for place, weight in enumerate(wrapper.parameters())}
    groups = [*wrapper.bucket_groups, *wrapper.expert_parallel_bucket_groups]
    first_weight = {id(g): min(places[id(weight)] for weight in g.params) for g in groups}
    return sorted(groups, key=lambda group: first_weight[id(group)], reverse=True)
