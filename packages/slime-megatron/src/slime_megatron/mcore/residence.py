"""How much of the training state is in device memory: all of it, the weights, or nothing."""

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from slime_core.residency import Holding
from torch import Tensor

from slime_megatron.mcore.optimizer import adam_state
from slime_megatron.mcore.optimizer.host_adam import HostAdam
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.tensors import settle, unwrap
from slime_megatron.offload import HostPages, Movable, storages_of

logger = logging.getLogger(__name__)

_LESS_TO_MORE: tuple[Holding, ...] = ("nothing", "weights", "everything")


class Residence:
    """Moves one rank's state; every rank makes the same calls.

    Parameters, buffers of modules and the optimizer's state go to host memory and come back bit
    for bit. Gradients are forgotten and come back as zeros: a step begins by zeroing them.
    """

    def __init__(self, state: TrainState, *, copies: bool | None = None) -> None:
        """``copies``: move what has to be kept; by default only where host memory is another."""
        self._state = state
        on_gpu = state.device.type == "cuda"
        self._copies = on_gpu if copies is None else copies
        self._weights = Movable(HostPages(pin=on_gpu))
        self._optimizer = Movable(HostPages(pin=on_gpu))
        self._gradients = Movable(None)
        self.held: Holding = "everything"

    @property
    def host_bytes(self) -> int:
        """Host memory that is kept for what is away, or was, and for what is always there."""
        always = sum(x.host_bytes for x in adam_state.hosted(self._state.optimizer))
        return self._weights.host_bytes + self._optimizer.host_bytes + always

    def hold(self, what: Holding) -> int:
        """Keep so much in device memory; ``host_bytes``."""
        if what != self.held:
            self._move(what)
        return self.host_bytes

    @contextmanager
    def at_least(self, what: Holding) -> Generator[None]:
        """Hold so much inside the block, and what was held before after it."""
        before = self.held
        if _LESS_TO_MORE.index(what) > _LESS_TO_MORE.index(before):
            self.hold(what)
        try:
            yield
        finally:
            self.hold(before)

    def _move(self, what: Holding) -> None:
        begin, before = time.monotonic(), self.held
        # What is there for certain, should a move fail halfway.
        is_less = _LESS_TO_MORE.index(what) < _LESS_TO_MORE.index(before)
        self.held = what if is_less else before
        weights, rest = what != "nothing", what == "everything"
        moved = 0
        if weights and self._weights.is_away:
            moved += self._weights.take_back()
        if rest:
            moved += self._optimizer.take_back() + self._gradients.take_back()
        elif before == "everything":
            moved -= self._give_optimizer()
        if not weights and before != "nothing":
            moved -= self._give_weights()
        if moved < 0 and self._state.device.type == "cuda":
            torch.cuda.empty_cache()
        self.held = what
        logger.info(
            "holding %s: %+.3f GiB in %.3f s", what, moved / 2**30, time.monotonic() - begin
        )

    def _give_optimizer(self) -> int:
        """Gradients and optimizer."""
        self._state.optimizer.zero_grad()  # frees the copies of gradients that a step has made
        settle(self._state.chunks)
        seen: set[int] = set()
        device = self._state.device
        storages_of(self._weight_tensors(), device, seen)  # may hold the main parameters, too
        gradients = storages_of(self._gradient_tensors(), device, seen)
        freed = self._gradients.give(gradients)
        if self._copies:
            freed += self._optimizer.give(storages_of(self._optimizer_tensors(), device, seen))
        return freed

    def _give_weights(self) -> int:
        if not self._copies:
            return 0
        return self._weights.give(storages_of(self._weight_tensors(), self._state.device, set()))

    def _flat_buffers(self) -> Iterator[Any]:
        for chunk in self._state.chunks:
            for name in ("buffers", "expert_parallel_buffers"):
                found: Any = chunk.__dict__.get(name, ())  # of DistributedDataParallel
                yield from found

    def _weight_tensors(self) -> Iterator[Tensor]:
        for buffer in self._flat_buffers():
            if buffer.param_data is not None:
                yield buffer.param_data
        for chunk in self._state.chunks:
            model: torch.nn.Module = unwrap(chunk)
            yield from model.parameters()
            yield from model.buffers()

    def _gradient_tensors(self) -> Iterator[Tensor]:
        for buffer in self._flat_buffers():
            if buffer.grad_data is not None:
                yield buffer.grad_data
            yield from getattr(buffer, "extra_main_grads", ())

    def _optimizer_tensors(self) -> Iterator[Tensor]:
        for part in adam_state.parts(self._state.optimizer):
            inner: Any = getattr(part, "optimizer", None)
            if isinstance(inner, HostAdam):
                yield from inner.tensors_on_device()
            elif inner is not None:
                for group in inner.param_groups:
                    yield from group["params"]
                for state in inner.state.values():
                    yield from (value for value in state.values() if torch.is_tensor(value))
