"""Several models in one set of parameters: host copies that are swapped in by name."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.tensors import named_tensors, settle, unwrap

_HELD = "(held while another snapshot is in)"


class Snapshots:
    """Copies of this rank's parameters on the host, by tag ("actor", "ref", "old_actor").

    ``store`` copies what is in the model, ``load`` puts a copy back, both bit for bit and in
    place: parameters keep their storage, so the distributed optimizer's buffers stay valid. The
    optimizer and its float32 main parameters are not touched where they are separate tensors
    (bf16); in float32 the main parameters are the model's, so nothing may step while a snapshot
    other than the trained one is in. ``using`` keeps to that rule.

    Every rank makes the same calls. Memory: one host copy of the rank's weights per tag, pinned
    when the weights are on a GPU.
    """

    def __init__(self, state: TrainState) -> None:
        self._state = state
        self._copies: dict[str, dict[str, Tensor]] = {}

    @property
    def tags(self) -> frozenset[str]:
        """What can be loaded."""
        return frozenset(self._copies) - {_HELD}

    @torch.no_grad()
    def store(self, tag: str) -> None:
        """Copy the model's parameters to the host as ``tag``, replacing an earlier copy."""
        settle(self._state.chunks)
        copies = self._copies.setdefault(tag, {})
        for name, tensor in self._live().items():
            if name not in copies:
                copies[name] = torch.empty_like(
                    tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False
                )
            copies[name].copy_(tensor, non_blocking=True)
        self._synchronize()

    @torch.no_grad()
    def load(self, tag: str) -> None:
        """Put ``tag`` into the model."""
        if tag not in self._copies:
            known = ", ".join(sorted(self.tags)) or "none"
            raise KeyError(f"no snapshot {tag!r}; stored are: {known}")
        settle(self._state.chunks)
        copies = self._copies[tag]
        for name, tensor in self._live().items():
            tensor.copy_(copies[name], non_blocking=True)
        self._synchronize()

    @contextmanager
    def using(self, tag: str) -> Generator[None]:
        """Have ``tag`` in the model inside the block, and what was there before again after it."""
        self.store(_HELD)
        try:
            self.load(tag)
            yield
        finally:
            self.load(_HELD)

    def drop(self, tag: str) -> None:
        """Free the memory of ``tag``."""
        self._copies.pop(tag, None)

    def _live(self) -> Mapping[str, Tensor]:
        return {
            f"{index}.{name}": tensor
            for index, chunk in enumerate(self._state.chunks)
            for name, tensor in named_tensors(unwrap(chunk))
        }

    def _synchronize(self) -> None:
        if self._state.device.type == "cuda":
            torch.cuda.synchronize(self._state.device)
