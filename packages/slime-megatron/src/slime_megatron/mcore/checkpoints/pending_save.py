"""Writing a checkpoint's files while training goes on."""

import shutil
import threading
from collections.abc import Callable, Sequence
from errno import ENOSPC
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingException
from slime_core.errors import CheckpointError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from slime_megatron.mcore.optimizer import adam_state
from slime_megatron.mcore.ranks.agreement import first_failure
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.tensors import named_tensors, unwrap

_MIB = 2**20
_FULL = _MIB
"""Free bytes below which a disk counts as full: what a failed write leaves is less than a block."""


class PendingSave:
    """The files of one checkpoint being written by a thread of every rank.

    Created on all ranks by ``checkpoint.save``, which has copied everything that training may
    change; ended on all ranks by ``finish``. A thread rather than Megatron's forked process: it
    cannot outlive the rank, and forking is unsafe once a process runs gloo, CUDA or Ray threads.
    """

    def __init__(self, request: Any, live: frozenset[int]) -> None:
        """Start writing ``request``; tensors in the storages ``live`` are copied first."""
        self._finalize: list[Callable[[], None]] = list(request.finalize_fns)
        self._failure: BaseException | None = None
        arguments = list(request.async_fn_args)
        if request.preload_fn is not None:
            arguments[1] = _detached(request.preload_fn(), live)
        self._files = _file_sizes(arguments[1]) if request.async_fn is not None else {}
        self._thread = threading.Thread(
            target=self._write, args=(request.async_fn, arguments), name="checkpoint writer"
        )
        self._thread.start()

    def finish(self, *, wait: bool) -> bool:
        """Complete the checkpoint if every rank has written its files; return whether it is.

        Collective. Raises ``CheckpointError`` on every rank when any of them could not write.
        """
        if wait:
            self._thread.join()  # waits: for the disk; the driver's call has a deadline
        writing = torch.tensor([int(self._thread.is_alive())], device=torch.cuda.current_device())
        dist.all_reduce(writing)
        if int(writing):
            return False
        self._thread.join()  # waits: has ended
        try:
            while self._finalize:
                self._finalize.pop(0)()
        except (CheckpointException, CheckpointingException) as error:
            self._failure = self._failure or error
        told = first_failure(self._failure)
        if told is not None:
            told = first_failure(_lack_of_room(self._files)) or told
            raise CheckpointError(f"the checkpoint could not be written; {told}") from self._failure
        return True

    def _write(self, function: Callable[..., None] | None, arguments: list[Any]) -> None:
        if function is None:
            return
        try:
            function(*arguments)
        except BaseException as error:  # reported by `finish`
            self._failure = error


def storages(state: TrainState) -> frozenset[int]:
    """Where the memory is that training changes."""
    tensors = [tensor for chunk in state.chunks for _, tensor in named_tensors(unwrap(chunk))]
    for part in adam_state.parts(state.optimizer):
        inner: Any = part.optimizer
        tensors += [parameter for group in inner.param_groups for parameter in group["params"]]
        tensors += [x for own in inner.state.values() for x in own.values() if torch.is_tensor(x)]
    return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)


def _file_sizes(buckets: Sequence[Any]) -> dict[Path, int]:
    """At least how large each file of this rank becomes."""
    sizes: dict[Path, int] = {}
    for path, _, (_, tensors) in buckets:
        sizes[Path(path)] = sum(tensor.nbytes for _, tensor in tensors)
    return sizes


def _lack_of_room(files: dict[Path, int]) -> OSError | None:
    """What the disk cannot take any more; Megatron's writer keeps the kind of an error alone."""
    for path, size in files.items():
        free = shutil.disk_usage(path.parent).free
        left = max(0, size - (path.stat().st_size if path.is_file() else 0))
        if free < max(left, _FULL):
            what = f"No space left on device: {free / _MIB:.1f} MiB free, {left / _MIB:.1f} needed"
            return OSError(ENOSPC, what, str(path.parent))
    return None


def _detached(buckets: list[Any], live: frozenset[int]) -> list[Any]:
    """The write buckets free of live memory: on a CPU the staged tensors may be the model's."""

    def own(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in live else tensor

    return [
        (path, key, (objects, [(item, own(tensor)) for item, tensor in tensors]))
        for path, key, (objects, tensors) in buckets
    ]
