"""Let unmodified Megatron-Core run on a host without CUDA: CPU tensors, gloo, everything in order.

Megatron asks for "the device" by saying cuda. ``install`` answers in three ways, none of which
edits a file or one of Megatron's own modules:

1. the handful of ``torch.cuda`` functions Megatron calls unconditionally (current device, streams,
   events, random state, memory statistics) get replacements that mean the CPU;
2. a ``TorchFunctionMode`` turns ``device="cuda"`` in tensor factories and ``.to``/``.cuda`` into
   the CPU and, for callers inside Megatron only, spells ``Tensor.type()`` the CUDA way (the
   optimizer asserts on that string) and says yes to ``Tensor.is_cuda``;
3. ``torch.compile`` runs eagerly: compiling takes seconds at the first step and needs a C++
   compiler. Megatron's fused functions, decorated while it is imported, stay as they are
   (``lean_imports``): the compiler, seconds to import, is then not needed for them.

Where CUDA works ``install`` does nothing, so the same program runs on GPUs. It must run before the
first import of ``megatron`` (``bootstrap.load`` sees to that).
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

import torch
from slime_core.processes.imports import lean
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_TENSOR_CUDA = torch.Tensor.cuda
_TENSOR_TO = torch.Tensor.to
_TENSOR_TYPE = torch.Tensor.type
_TENSOR_IS_CUDA: Any = getattr(torch.Tensor.is_cuda, "__get__")  # noqa: B009

_FOR_GPUS = ("flashinfer", "flash_attn", "quack")
"""Packages with kernels that Megatron imports where they are installed."""
_patched = threading.Event()
_thread = threading.local()


class _Stream:
    """A CUDA stream on a machine where everything already happens in order."""

    device = _CPU
    cuda_stream = 0
    stream_id = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept and ignore device and priority."""

    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def query(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 0

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *exc: object) -> bool:
        return False


class _Event:
    """An event that has always happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept and ignore timing flags."""

    def record(self, *args: Any) -> None: ...
    def wait(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class _Generators:
    """``torch.cuda.default_generators``: whatever the index, the CPU's."""

    def __getitem__(self, index: int) -> torch.Generator:
        return torch.default_generator

    def __len__(self) -> int:
        return 1


class _Properties:
    """What argument validation asks of the device; compute capability 0 is older than any check."""

    name, major, minor, multi_processor_count, total_memory = "cpu", 0, 0, 1, 0


def _names_cuda(device: Any) -> bool:
    if device is None or device is _CPU:
        return False
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _caller_is_megatron() -> bool:
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    return frame.f_globals.get("__name__", "").startswith("megatron.")


class CudaMeansCpu(TorchFunctionMode):
    """Rewrites requests for CUDA tensors; modes are per thread."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``func`` with every mention of CUDA replaced."""
        if kwargs:
            if _names_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": _CPU}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        if func is _TENSOR_CUDA:
            return args[0]
        if func is _TENSOR_TO and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        elif func is _TENSOR_TYPE and len(args) == 1 and not kwargs:
            name: str = func(*args)
            return name.replace("torch.", "torch.cuda.", 1) if _caller_is_megatron() else name
        elif func == _TENSOR_IS_CUDA:
            return _caller_is_megatron()
        return func(*args, **(kwargs or {}))


def _answer(value: Any) -> Any:
    """A function that says ``value`` whatever it is asked; a new one each time.

    torch.compile keeps a table of torch's functions and refuses one object under two names.
    """

    def answer(*args: Any, **kwargs: Any) -> Any:
        return value

    return answer


def _patch_device_queries(cuda: Any) -> None:
    """Whoever asks where it runs hears: the CPU."""
    stock_properties, stock_capability = cuda.get_device_properties, cuda.get_device_capability

    def get_device_properties(*args: Any) -> Any:
        return _Properties() if _caller_is_megatron() else stock_properties(*args)

    def get_device_capability(*args: Any) -> Any:
        return (0, 0) if _caller_is_megatron() else stock_capability(*args)

    cuda.current_device = lambda: _CPU
    cuda.get_device_properties = get_device_properties
    cuda.get_device_capability = get_device_capability
    for name in ("synchronize", "empty_cache", "set_device", "set_stream", "ipc_collect"):
        setattr(cuda, name, _answer(None))
    cuda.reset_peak_memory_stats = _answer(None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        setattr(cuda, name, _answer(0))
    cuda.max_memory_reserved = _answer(0)


def _in_order(stream: Any) -> contextlib.AbstractContextManager[None]:
    """The block of ``torch.cuda.stream``."""
    return contextlib.nullcontext()


def _patch_streams(cuda: Any) -> None:
    """Streams and events that are always in order."""
    cuda.Stream, cuda.Event = _Stream, _Event
    cuda.current_stream = cuda.default_stream = lambda device=None: _Stream()  # type: ignore[misc]
    cuda.stream = _in_order
    for name in ("range_push", "range_pop", "mark"):
        setattr(cuda.nvtx, name, _answer(0))
    torch.Tensor.record_stream = _answer(None)  # type: ignore[method-assign]


def _patch_random_state(cuda: Any) -> None:
    """The CUDA generator is the CPU generator."""

    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def manual_seed(seed: int) -> None:
        torch.default_generator.manual_seed(int(seed))

    def call_now(call: Any, **kwargs: Any) -> None:
        call()

    cuda._lazy_call = call_now
    cuda.default_generators = _Generators()
    cuda.get_rng_state = cuda.random.get_rng_state = get_rng_state
    cuda.set_rng_state = cuda.random.set_rng_state = set_rng_state
    cuda.manual_seed = cuda.random.manual_seed = manual_seed


def _eager(compile_: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` that has the compiler, once it is there, run everything eagerly."""
    told = threading.Event()

    def compile_eagerly(*args: Any, **kwargs: Any) -> Any:
        if not told.is_set():
            told.set()
            torch.compiler.set_stance("force_eager")
        return compile_(*args, **kwargs)

    return compile_eagerly


def _as_it_is(model: Any = None, **_options: Any) -> Any:
    """``torch.compile``, called or as a decorator, that compiles nothing."""
    return _as_it_is if model is None else model


@contextlib.contextmanager
def lean_imports() -> Generator[None]:
    """On the CPU, import Megatron without what only GPUs need and takes longer to import than it.

    Packages of kernels are not there for it, and nothing is wrapped for torch's compiler.
    """
    if not is_installed():
        yield
        return
    compile_, torch.compile = torch.compile, _as_it_is
    try:
        with lean(*_FOR_GPUS):
            yield
    finally:
        torch.compile = compile_


def _stay(self: torch.nn.Module, device: Any = None) -> torch.nn.Module:
    return self


def is_installed() -> bool:
    """Whether Megatron runs on the CPU in this process."""
    return _patched.is_set()


def install() -> bool:
    """Make CUDA mean the CPU in this process and thread; safe to call again and from any thread.

    Returns whether Megatron runs on the CPU: False, and nothing changed, where CUDA is available
    (set ``CUDA_VISIBLE_DEVICES=""`` to run on the CPU of a machine with GPUs).
    """
    if not _patched.is_set():
        if torch.cuda.is_available():
            return False
        _patch_device_queries(torch.cuda)
        _patch_streams(torch.cuda)
        _patch_random_state(torch.cuda)
        torch.nn.Module.cuda = _stay  # type: ignore[method-assign, assignment]
        torch.compile = _eager(torch.compile)
        _patched.set()
        logger.debug("no CUDA device: Megatron-Core's CUDA calls now mean the CPU")
    if not getattr(_thread, "entered", False):
        CudaMeansCpu().__enter__()
        _thread.entered = True
    return True
