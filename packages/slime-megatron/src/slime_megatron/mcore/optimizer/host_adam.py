"""AdamW whose float32 weights and moments live in host memory, all of them or a share.

Takes the place of Megatron's ``HybridDeviceOptimizer`` inside its distributed optimizer
(``patches.answer_cpu_offload``), where ``--optimizer-cpu-offload`` asks for it. Megatron's own
pins a copy of the whole model on every rank, keeps its gradients there as well, and does neither
take parameters in float32 nor save before its first step without TransformerEngine.
"""

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
_STATE = ("master_param", "exp_avg", "exp_avg_sq")
"""What Megatron reads and writes of a parameter's state, by its names."""
PIECE = 1 << 25
"""Elements that are on their way at once; host memory is pinned for so many, not for the state."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Elements of one parameter: views, all flat."""

    group: dict[str, Any]
    weight: Tensor
    gradient: Tensor
    main: Tensor
    moments: tuple[Tensor, Tensor]


@dataclass(slots=True)
class _Slot:
    """Pinned memory that one piece passes through."""

    gradient: Tensor
    weights: dict[torch.dtype, Tensor] = field(default_factory=dict[torch.dtype, Tensor])
    fetched: Any = None
    returned: Any = None


class HostAdam(torch.optim.Optimizer):
    """Megatron owns it as it owns a ``HybridDeviceOptimizer``; steps come from one thread.

    ``state[parameter]`` holds Megatron's three tensors, flat and in float32: on the host for the
    first parameters, up to ``offload_fraction`` of all elements, where the parameter is for the
    rest. Nothing is allocated before the first step, load or ``prime``: Megatron makes one of
    these over the whole model first, and then the one over this rank's shards.
    """

    def __init__(self, params: Iterable[Any], **settings: Any) -> None:
        """``settings``: Megatron's, which it hands on to the second one as ``defaults``."""
        super().__init__(params, settings)
        self.num_steps = 0
        self._slots: list[_Slot] = []
        self._streams: tuple[Any, Any] | None = None
        self.num_threads: int | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Also of views of parameters, which torch refuses."""
        given = {name: self.defaults[name] for name in _HYPERPARAMETERS}
        self.param_groups.append({**given, **param_group})

    @property
    def host_bytes(self) -> int:
        """Of the state that is kept in host memory, and of what gradients pass through."""
        kept = [tensor for p in self._offloaded() for tensor in self.state[p].values()]
        passed = [x for slot in self._slots for x in (slot.gradient, *slot.weights.values())]
        return sum(tensor.nbytes for tensor in (*kept, *passed))

    @property
    def sub_optimizers(self) -> tuple[Any, ...]:
        """Megatron looks for step counts there; see ``state_dict``."""
        return ()

    def tensors_on_device(self) -> Iterator[Tensor]:
        """Parameters, and the state that is not kept in host memory."""
        offloaded = self._offloaded()
        for group in self.param_groups:
            yield from group["params"]
        for parameter, state in self.state.items():
            yield from () if parameter in offloaded else state.values()

    @torch.no_grad()
    def prime(self) -> None:
        """Have the state that the first step would start from."""
        offloaded = self._offloaded()
        for parameter in self._parameters():
            if parameter not in self.state:
                main = parameter.detach().view(-1).float()
                main = main.to("cpu", copy=True) if parameter in offloaded else main
                moments = (torch.zeros_like(main) for _ in _STATE[1:])
                self.state[parameter] = dict(zip(_STATE, (main, *moments), strict=True))

    def dummy_step(self) -> None:
        """Megatron's call before it loads where no state is, as on a rank without parameters."""
        self.prime()

    @torch.no_grad()
    def reset(self) -> None:
        """Forget moments and the step count."""
        self.num_steps = 0
        for state in self.state.values():
            for name in _STATE[1:]:
                state[name].zero_()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update what has a gradient, on the host and where the parameters are."""
        assert closure is None, "Megatron calls step without one"
        self.prime()
        self.num_steps += 1
        offloaded = self._offloaded()
        away: list[_Piece] = []
        for group in self.param_groups:
            here: list[_Piece] = []
            for parameter in group["params"]:
                gradient = getattr(parameter, "decoupled_grad", None)
                if gradient is not None and parameter.numel():
                    pieces = self._pieces(group, parameter, gradient)
                    (away if parameter in offloaded else here).extend(pieces)
            self._update(group, here, [piece.gradient.float() for piece in here])
            for piece in here:
                if piece.weight.data_ptr() != piece.main.data_ptr():
                    piece.weight.copy_(piece.main)
        with self._threads():
            self._update_through_slots(away)

    @torch.no_grad()
    def update_fp32_param_by_new_param(self) -> None:
        """Start from the weights as they are now; Megatron calls it after loading some."""
        self.prime()
        for parameter, state in self.state.items():
            state["master_param"].copy_(parameter.detach().view(-1))

    @torch.no_grad()
    def _sync_hdo_state_to_sub_optimizers(self) -> None:
        """Megatron has put loaded tensors into ``state``: keep them where they belong."""
        offloaded = self._offloaded()
        for parameter in self._parameters():
            state = self.state[parameter]
            home = torch.device("cpu") if parameter in offloaded else parameter.device
            for name in _STATE:
                state[name] = state[name].detach().to(home, torch.float32, copy=True)
            if parameter not in offloaded and parameter.dtype == torch.float32:
                own = parameter.detach().view(-1)
                state["master_param"] = own.copy_(state["master_param"])

    def state_dict(self) -> dict[str, Any]:
        """Parameter groups and the step count; Megatron takes tensors from ``state`` itself.

        It reads the count from ``state`` or, where TransformerEngine is installed, from the groups.
        """
        order = iter(range(sum(len(group["params"]) for group in self.param_groups)))
        groups = [
            {**group, "params": [next(order) for _ in group["params"]], "step": self.num_steps}
            for group in self.param_groups
        ]
        return {"state": {0: {"step": torch.tensor(float(self.num_steps))}}, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of this class, or of torch's Adam as Megatron saved it."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: x for name, x in saved.items() if name not in ("params", "step")})
            self.num_steps = int(saved.get("step", self.num_steps))
        self.prime()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let the gradients go, which are views of Megatron's buffers."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.decoupled_grad = None

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _offloaded(self) -> set[Tensor]:
        """The parameters whose state is kept in host memory."""
        parameters = self._parameters()
        wanted = sum(p.numel() for p in parameters) * self.defaults["offload_fraction"]
        found: set[Tensor] = set()
        for parameter in parameters:
            if wanted > 0:
                found.add(parameter)
                wanted -= parameter.numel()
        return found

    def _pieces(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> list[_Piece]:
        flat = (parameter.detach(), gradient, *(self.state[parameter][name] for name in _STATE))
        return [
            _Piece(group, weight, slope, main, (first, second))
            for weight, slope, main, first, second in zip(
                *(tensor.reshape(-1).split(PIECE) for tensor in flat), strict=True
            )
        ]

    def _update(self, group: dict[str, Any], pieces: list[_Piece], gradients: list[Tensor]) -> None:
        """Of pieces on one device, by one kernel."""
        if not pieces:
            return
        steps = torch.full((len(pieces),), self.num_steps - 1.0, device=pieces[0].main.device)
        beta1, beta2 = group["betas"]
        adamw(
            [piece.main for piece in pieces],
            gradients,
            [piece.moments[0] for piece in pieces],
            [piece.moments[1] for piece in pieces],
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _update_through_slots(self, pieces: list[_Piece]) -> None:
        """Fetch gradients, update, return weights; overlapped, the next is fetched meanwhile."""
        if not pieces:
            return
        overlap = self.defaults["overlap_cpu_optimizer_d2h_h2d"]
        current = torch.cuda.current_stream()
        if overlap and self._streams is None:
            self._streams = (torch.cuda.Stream(), torch.cuda.Stream())
        fetching, returning = self._streams or (current, current)
        largest = min(PIECE, max(parameter.numel() for parameter in self._parameters()))
        while len(self._slots) < 1 + overlap:
            self._slots.append(_Slot(self._staging(largest, torch.float32, "pin_cpu_grads")))
        fetching.wait_stream(current)
        ahead = len(self._slots) - 1
        for index, piece in enumerate(pieces):
            for each in range(index + (ahead if index else 0), index + ahead + 1):
                if each < len(pieces):
                    self._fetch(pieces[each], self._slots[each % len(self._slots)], fetching)
            slot = self._slots[index % len(self._slots)]
            slot.fetched.synchronize()
            self._update(piece.group, [piece], [slot.gradient[: piece.main.numel()]])
            self._return(piece, slot, returning)
        current.wait_stream(returning)

    def _fetch(self, piece: _Piece, slot: _Slot, stream: Any) -> None:
        with torch.cuda.stream(stream):
            slot.gradient[: piece.gradient.numel()].copy_(piece.gradient, non_blocking=True)
            slot.fetched = stream.record_event()

    def _return(self, piece: _Piece, slot: _Slot, stream: Any) -> None:
        if slot.returned is not None:
            slot.returned.synchronize()
        dtype, size = piece.weight.dtype, piece.main.numel()
        if dtype not in slot.weights:
            slot.weights[dtype] = self._staging(len(slot.gradient), dtype, "pin_cpu_params")
        staged = slot.weights[dtype][:size].copy_(piece.main)
        with torch.cuda.stream(stream):
            piece.weight.copy_(staged, non_blocking=True)
            slot.returned = stream.record_event()

    def _staging(self, size: int, dtype: torch.dtype, flag: str) -> Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=bool(self.defaults[flag]))

    @contextlib.contextmanager
    def _threads(self) -> Generator[None]:
        """Use this rank's share of the machine's cores, of which it otherwise needs one."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.num_threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def cores_of_each(ranks_here: int) -> int:
    """How many cores each of the ranks of this machine may use."""
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)
