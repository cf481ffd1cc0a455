"""Give back the memory of an engine on a CPU, where SGLang's memory saver does not work.

Between ``/release_memory_occupation`` and ``/resume_memory_occupation`` the storages of the KV
cache and of the weights are empty; they come back as zeros. What else the two endpoints do stays
SGLang's. With --enable-weights-cpu-backup the weights stay where they are.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, UntypedStorage

_TARGET = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
_KV_BUFFERS = ("k_buffer", "v_buffer", "kv_buffer")


def _release(original: Callable[..., Any], updater: Any, request: Any) -> Any:
    reply = original(updater, request)
    for storage, _ in _storages(updater, request.tags):
        storage.resize_(0)
    _trim()
    return reply


def _resume(original: Callable[..., Any], updater: Any, request: Any) -> Any:
    for storage, size in _storages(updater, request.tags):
        storage.resize_(size)
        torch.empty(0, dtype=torch.uint8).set_(storage).zero_()
    return original(updater, request)


def _storages(updater: Any, tags: list[str] | None) -> list[tuple[UntypedStorage, int]]:
    """What ``tags`` stand for, and how many bytes each must have for its tensors."""
    runner = updater.tp_worker.model_runner
    tensors: list[Tensor] = []
    if not tags or "kv_cache" in tags:
        tensors += _cache_of(runner.token_to_kv_pool)
    if (not tags or "weights" in tags) and not runner.server_args.enable_weights_cpu_backup:
        tensors += runner.model.parameters()
    sizes: dict[int, int] = {}
    storages: dict[int, UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        identity: int = storage._cdata  # pyright: ignore[reportPrivateUsage]
        storages.setdefault(identity, storage)
        sizes[identity] = max(sizes.get(identity, 0), extent(tensor))
    return [(storages[identity], size) for identity, size in sizes.items()]


def extent(tensor: Tensor) -> int:
    """Bytes from the beginning of its storage to the end of a tensor, whatever the storage has."""
    if not tensor.numel():
        return 0
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (int(tensor.storage_offset()) + last + 1) * tensor.element_size()


def _cache_of(pool: Any) -> Iterator[Tensor]:
    """The buffers of a pool and of the pools that it is made of."""
    for name, value in vars(pool).items():
        if name in _KV_BUFFERS and value is not None:
            yield from value
        elif any(hasattr(value, buffer) for buffer in _KV_BUFFERS):
            yield from _cache_of(value)


def _trim() -> None:
    """Hand what the allocator keeps back to the operating system."""
    ctypes.CDLL(None).malloc_trim(0)


AROUND: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        f"{_TARGET}.release_memory_occupation": _release,
        f"{_TARGET}.resume_memory_occupation": _resume,
    }
)
"""SGLang 0.5.17's functions and the hooks around them."""
