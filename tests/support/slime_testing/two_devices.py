"""A machine without a GPU that tells tensors of the host from those of the device.

On a GPU an operation of tensors in different places fails; on a CPU there is one place and nothing
is noticed. Here every tensor is on one of two sides, by what it was asked to be made on: the device
is called ``cpu:0``, the host ``cpu``. Operations that a GPU would refuse are noted.

Not noticed: threads other than the caller's, and tensors whose makers say nothing in Python, until
they have met one that is known.
"""

import sys
import traceback
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Side = Literal["device", "host"]

DEVICE, HOST = torch.device("cpu", 0), torch.device("cpu")
_GET_DEVICE: Any = getattr(torch.Tensor.device, "__get__")  # noqa: B009
_GET_IS_CUDA: Any = getattr(torch.Tensor.is_cuda, "__get__")  # noqa: B009
_MOVES = {Tensor.to, Tensor.cuda, Tensor.cpu}
_COPIES = {"copy_", "_to_copy", "set_", "_local_scalar_dense"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Their indices may be on the host."""


class Sides:
    """Where tensors are, by their memory, which is kept so that none takes another's place."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Side, Any]] = {}

    def of(self, x: Tensor) -> Side | None:
        """None before it is known."""
        return self._known.get(self._memory(x)._cdata, (None,))[0]

    def put(self, x: Tensor, side: Side) -> None:
        """``x``, and whatever shares its memory."""
        memory = self._memory(x)
        self._known[memory._cdata] = (side, memory)

    @staticmethod
    def _memory(x: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return x.untyped_storage()


def _tensors(given: Any) -> list[Tensor]:
    return [x for x in tree_leaves(given) if isinstance(x, Tensor)]


def _side(device: Any) -> Side | None:
    """The side that a name of a device means; None for tensors without memory."""
    if isinstance(device, int):
        return "device"
    named = torch.device(device)
    if named.type == "meta":
        return None
    return "device" if named.type == "cuda" or named == DEVICE else "host"


def _as_megatron_wants(func: Any, x: Tensor, caller: Any) -> Any:
    """Megatron asserts that tensors are of CUDA; ``cpu.CudaMeansCpu`` would ask who calls it."""
    to_megatron = caller.f_globals.get("__name__", "").startswith("megatron.")
    if func == _GET_IS_CUDA:
        return to_megatron
    kind: str = func(x)
    return kind.replace("torch.", "torch.cuda.", 1) if to_megatron else kind


def _here(given: Any) -> Any:
    """What to ask this machine for, which would copy from ``cpu`` to ``cpu:0``."""
    named = isinstance(given, str | torch.device)
    return HOST if named and _side(given) == "device" else given


class Placement(TorchFunctionMode):
    """Follows what Python asks for: makers, moves, and the question where a tensor is."""

    def __init__(self, sides: Sides) -> None:
        super().__init__()
        self._sides = sides

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` on the CPU and note the side of what comes of it."""
        kwargs = dict(kwargs or {})
        if func == _GET_DEVICE and self._sides.of(args[0]) == "device":
            return DEVICE
        if func == _GET_IS_CUDA or (func is Tensor.type and len(args) == 1):
            return _as_megatron_wants(func, args[0], sys._getframe(1))
        if func in _MOVES:
            return self._moved(func, args, kwargs)
        asked = kwargs.get("device")
        if asked is not None:
            return self._made(func, args, {**kwargs, "device": _here(asked)}, _side(asked))
        if not _tensors((args, kwargs)):
            return self._made(func, args, kwargs, "host")
        return func(*args, **kwargs)

    def _made(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], side: Side | None
    ) -> Any:
        """What comes of a maker of tensors, if it is one."""
        out = func(*args, **kwargs)
        for x in _tensors(out) if side else ():
            self._sides.put(x, side)
        return out

    def _moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """A copy, as between machines' memories, if it has to change sides."""
        if func is Tensor.cuda:
            func, args, kwargs = Tensor.to, (args[0], DEVICE), {}
        x, target = args[0], "host" if func is Tensor.cpu else None
        for given in (*args[1:], *kwargs.values()):
            if isinstance(given, Tensor):
                target = self._sides.of(given)
            elif isinstance(given, str | torch.device):
                target = _side(given)
        args = tuple(_here(given) for given in args)
        kwargs = {name: _here(given) for name, given in kwargs.items()}
        out: Tensor = func(*args, **kwargs)
        before = self._sides.of(x)
        if target is not None and before != target:
            if before is not None and out.data_ptr() == x.data_ptr():
                out = out.clone()
            self._sides.put(out, target)
        return out


class Meetings(TorchDispatchMode):
    """Notes operations of both sides, also those that autograd adds."""

    def __init__(self, sides: Sides, found: list[str]) -> None:
        super().__init__()
        self._sides, self._found = sides, found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` and note whether a GPU would."""
        space, _, name = func._schema.name.partition("::")
        given = _tensors((args, kwargs))
        if space == "c10d":
            self._look_at_collective(name, given)
        elif name not in _COPIES:
            self._look_at(name, given)
        with torch._C.DisableTorchFunction():
            out = func(*args, **(kwargs or {}))
        sides = {self._sides.of(x) for x in given}
        if given and space != "c10d" and sides != {None}:
            for x in _tensors(out):
                if self._sides.of(x) is None:
                    self._sides.put(x, "device" if "device" in sides else "host")
        return out

    def _look_at(self, name: str, given: list[Tensor]) -> None:
        """A number of the host may meet tensors of the device, and indices may stay there."""
        if name in _INDEXING and self._sides.of(given[0]) == "device":
            return
        on_device = any(self._sides.of(x) == "device" for x in given)
        if on_device and any(self._sides.of(x) == "host" and x.dim() for x in given):
            told = ", ".join(f"{self._sides.of(x)} {tuple(x.shape)}" for x in given)
            self._found.append(f"{name}({told}) {_where(traceback.extract_stack())}")

    def _look_at_collective(self, name: str, given: list[Tensor]) -> None:
        """NCCL takes tensors of the device; objects are sent by gloo."""
        stack = traceback.extract_stack()
        objects = any("object" in frame.name for frame in stack)
        if name != "barrier" and not objects and any(self._sides.of(x) == "host" for x in given):
            self._found.append(f"{name} of a tensor of the host {_where(stack)}")


def _where(stack: Iterable[traceback.FrameSummary]) -> str:
    """The innermost frames outside torch."""
    frames = [f for f in stack if "/torch/" not in f.filename and f.filename != __file__]
    return " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames[-4:]))


@contextmanager
def two_devices() -> Generator[list[str]]:
    """Yield a list of what a GPU would refuse, as it runs inside."""
    found: list[str] = []
    sides = Sides()
    with Placement(sides), Meetings(sides, found):
        yield found


def train_on_device() -> None:
    """Have what Megatron calls cuda, and trainers take for theirs, be the device.

    For the rest of the process, where ``bootstrap.load`` has run.
    """
    from slime_megatron import trainer
    from slime_megatron.mcore.startup import cpu

    cpu._CPU = cpu._Stream.device = DEVICE
    trainer._device = lambda rank, on_cpu: DEVICE
