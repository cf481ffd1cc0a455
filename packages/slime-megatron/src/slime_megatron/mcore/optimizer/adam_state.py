"""What torch's own Adam needs inside Megatron's distributed optimizer: fusion, and checkpoints.

Megatron finds no other (``startup.bootstrap``), so the optimizer inside is ``torch.optim.Adam`` or
``AdamW``, whose state differs from what Megatron expects in one entry, ``step``.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from slime_megatron.mcore.optimizer.host_adam import HostAdam

_NO_PARAMETER: Any = "no parameter"

_KIND = ("lr_mult", "wd_mult", "is_expert_parallel", "is_decoupled_lr", "optimizer")


def parts(optimizer: Any) -> list[Any]:
    """The Megatron optimizers inside a chained one, or the one itself."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


@torch.no_grad()
def prime(optimizer: Any) -> None:
    """Give a fresh Adam the state its first step would start from. Collective.

    Megatron describes what it is going to load or save by the state that exists, and asserts that
    there is exactly one step count: also where there is no parameter, as for experts on a pipeline
    stage whose layers have none, or on a stage whose weights are all frozen. There the count of the
    others, on any rank, stands under a name of its own.
    """
    for inner in hosted(optimizer):
        inner.prime()
    adams = [inner for part in parts(optimizer) if _is_adam(inner := _inner(part))]
    for inner in adams:
        for group in inner.param_groups:
            for parameter in group["params"]:
                if not inner.state[parameter]:
                    on_device = group.get("fused") or group.get("capturable")
                    inner.state[parameter].update(
                        step=torch.tensor(0.0, device=parameter.device if on_device else None),
                        exp_avg=torch.zeros_like(parameter),
                        exp_avg_sq=torch.zeros_like(parameter),
                    )
    step = _most_steps(adams)
    for inner in adams:
        if not any(group["params"] for group in inner.param_groups):
            inner.state[_NO_PARAMETER] = {"step": step.clone()}


def _most_steps(adams: Sequence[torch.optim.Adam]) -> torch.Tensor:
    """The most that a parameter of any rank has taken, as one number on the CPU.

    Rank 0 writes it down for all, so it has to be right there even if it trains nothing.
    """
    taken = [float(state["step"]) for inner in adams for state in inner.state.values()]
    device: Any = torch.cuda.current_device()
    most = torch.tensor([max(taken, default=0.0)], device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most[0].cpu()


def fuse(optimizer: Any) -> None:
    """Update by one kernel on a GPU instead of one for every operation; its step counts are there.

    Asked for again after loading: groups of a checkpoint say how they were updated elsewhere.
    """
    for inner in (inner for part in parts(optimizer) if _is_adam(inner := _inner(part))):
        for group in inner.param_groups:
            on_gpu = bool(group["params"]) and all(p.is_cuda for p in group["params"])
            group["fused"], group["foreach"] = on_gpu or None, False if on_gpu else None
            for parameter in group["params"] if on_gpu else ():
                state = inner.state.get(parameter, {})
                if "step" in state:
                    state["step"] = state["step"].to(parameter.device, torch.float32)


def hosted(optimizer: Any) -> list[HostAdam]:
    """Those that keep state in host memory."""
    return [inner for part in parts(optimizer) if isinstance(inner := _inner(part), HostAdam)]


def _inner(part: Any) -> Any:
    return getattr(part, "optimizer", None)


def _is_adam(inner: Any) -> bool:
    return isinstance(inner, torch.optim.Adam)  # AdamW is one


@torch.no_grad()
def reset(optimizer: Any) -> None:
    """Forget moments and step counts, as if no step had been taken yet."""
    for inner in hosted(optimizer):
        inner.reset()
    for part in parts(optimizer):
        if isinstance(_inner(part), HostAdam):
            continue
        for state in getattr(part, "optimizer", part).state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()


def group_pairs(
    optimizer: Any, state: Mapping[Any, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each parameter group of a saved ``state`` with the optimizer's own of its kind."""
    for part, own in _part_states(optimizer, state):
        groups: list[dict[str, Any]] = own.get("optimizer", own)["param_groups"]
        kinds = [_kind(group) for group in part.param_groups]
        for group in groups:
            if kinds.count(_kind(group)) == 1:
                yield group, part.param_groups[kinds.index(_kind(group))]


def _kind(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells parameter groups apart besides the schedule."""
    return tuple(group.get(key) for key in _KIND)


def _part_states(
    optimizer: Any, state: Mapping[Any, Any]
) -> Iterator[tuple[Any, Mapping[Any, Any]]]:
    inners = parts(optimizer)
    states = [state] if len(inners) == 1 else [state[index] for index in range(len(inners))]
    yield from zip(inners, states, strict=True)


def load(optimizer: Any, state: Mapping[Any, Any]) -> None:
    """``optimizer.load_state_dict``, with the step counts kept out of Megatron's way.

    The distributed optimizer copies every tensor of a parameter's state from the checkpoint, where
    the step count is stored once, in the parameter groups: while it copies, ours are plain numbers.
    It also hands the same count to every parameter; each needs its own, because Adam increments
    them one by one.
    """
    for part, own in _part_states(optimizer, state):
        if "param_state" not in own or not isinstance(part.optimizer, torch.optim.Adam):
            part.load_state_dict(own)
            continue
        part.load_state_dict({k: v for k, v in own.items() if not k.startswith("param_state")})
        with _steps_as_numbers(part.optimizer):
            part.load_parameter_state_from_fully_reshardable(own["param_state"])
    fuse(optimizer)


@contextmanager
def _steps_as_numbers(adam: torch.optim.Adam) -> Generator[None]:
    steps = [(state, state["step"].clone()) for state in adam.state.values()]
    for state, step in steps:
        state["step"] = float(step)
    try:
        yield
    finally:
        for state, step in steps:
            state["step"] = step
