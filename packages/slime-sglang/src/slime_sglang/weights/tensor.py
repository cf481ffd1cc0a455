"""Publish by handing over memory: shared memory on a CPU, CUDA IPC on a GPU; one host only.

The bytes never pass through HTTP: a request carries a pickled handle. The pickle is what SGLang's
MultiprocessingSerializer would have written, without importing SGLang.
"""

import base64
import io
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing
from slime_core.config.sync import UpdateMode
from slime_core.interfaces import Metrics
from torch import Tensor
from torch.multiprocessing import reductions

from slime_sglang.weights.bucket import Bucket, pack
from slime_sglang.weights.session import EngineTarget, PublishSession, UnderWay

_DEVICE_ARGUMENT = 6
"""Position of the device index among the arguments of torch's ``rebuild_cuda_tensor``."""


class TensorReceiver:
    """``WeightReceiver`` for engines on the trainer's own host."""

    def __init__(self, targets: Sequence[EngineTarget], *, mode: UpdateMode = "abort") -> None:
        self._session = PublishSession(targets, mode)
        self._under_way: UnderWay | None = None

    def begin(self, version: int) -> None:
        """Have the engines pause, while the first bucket is put together."""
        self._under_way = None
        self._session.open(version)
        self._session.begin_pause()

    def send(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Have every engine load one bucket; returns when the one before is verified and loaded.

        So the trainer puts the next one together meanwhile, and two are in memory at most.
        """
        if not tensors:
            return
        bucket = pack(tensors)
        if bucket.flat.is_cuda:
            torch.cuda.synchronize(bucket.flat.device)
        payloads = [
            [serialize(bucket) for _ in range(target.num_ranks)] for target in self._session.targets
        ]
        by_url = dict(zip((t.url for t in self._session.targets), payloads, strict=True))
        self._settle()
        requests = self._session.submit(
            lambda client, target: client.update_from_tensor(by_url[target.url])
        )
        self._under_way = UnderWay(bucket, requests)

    def commit(self) -> Metrics:
        """Set the version and resume."""
        self._settle()
        self._session.finish()
        return {}

    def close(self) -> None:
        """Drop the connections."""
        self._under_way = None
        self._session.close()

    def _settle(self) -> None:
        """Return when the engines have paused, and the bucket under way is loaded."""
        self._session.settle_pause()
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.settle(self._session)
            on_gpu = under_way.bucket.flat.is_cuda
            del under_way  # what is still held is not collected
            if on_gpu:
                torch.cuda.ipc_collect()


def serialize(bucket: Bucket) -> str:
    """A base64 pickle that an engine opens as the bucket's memory; one per rank that reads it."""
    flat = _CudaHandle(bucket.flat) if bucket.flat.is_cuda else bucket.flat
    out = io.BytesIO()
    with _shared_by_file_name():
        ForkingPickler(out).dump({"flattened_tensor": flat, "metadata": bucket.metadata()})
    return base64.b64encode(out.getvalue()).decode()


@contextmanager
def _shared_by_file_name() -> Generator[None]:
    """Shared memory by name: the default passes descriptors, which unrelated processes cannot."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)


class _CudaHandle:
    """Pickles as a CUDA tensor whose device is named by UUID, as SGLang's processes expect.

    An index would mean another GPU where CUDA_VISIBLE_DEVICES differs.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        reduced: Any = reductions.reduce_tensor(self._tensor)
        rebuild, arguments = reduced
        at = _DEVICE_ARGUMENT
        uuid = str(torch.cuda.get_device_properties(arguments[at]).uuid)
        return rebuild, (*arguments[:at], uuid, *arguments[at + 1 :])
