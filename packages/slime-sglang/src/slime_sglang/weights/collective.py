"""Publish by broadcast: NCCL between GPUs, gloo between CPUs; engines may be on any host.

Rank 0 of the group is the trainer, the other ranks are the engines' processes in order. SGLang's
side of the handshake is ``init_custom_process_group``: a TCP store on rank 0, and a backend whose
keys in it are prefixed by the group's name and the device. This is the other side of it.
"""

import os
import socket
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from slime_core.config.sync import UpdateMode
from slime_core.errors import ConfigError, WeightSyncError
from slime_core.interfaces import Metrics
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from slime_sglang.weights.bucket import pack
from slime_sglang.weights.session import EngineTarget, Session, UnderWay

_POLL_S = 0.0005


class CollectiveReceiver:
    """``WeightReceiver`` over a collective group that is formed at the first publish."""

    def __init__(
        self,
        targets: Sequence[EngineTarget],
        *,
        backend: Literal["nccl", "gloo"],
        host: str = "127.0.0.1",
        timeout_s: float = 120.0,
        mode: UpdateMode = "abort",
    ) -> None:
        if backend == "nccl" and os.environ.get("NCCL_CUMEM_ENABLE") != "0":
            raise ConfigError(
                "NCCL_CUMEM_ENABLE must be 0 in the trainer's environment before NCCL starts, as "
                "SGLang has it: otherwise the first broadcast to an engine never ends"
            )
        self._session = Session(targets, mode)
        self._backend = backend
        self._host = host
        self._timeout_s = timeout_s
        self._name = ""
        self._store: TCPStore | None = None
        self._group: Any = None
        self._under_way: UnderWay | None = None

    def begin(self, version: int) -> None:
        """Pause the engines, and form the group the first time."""
        self._under_way = None
        self._session.open(version)
        self._session.pause()
        if self._group is None:
            self._connect()

    def send(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Broadcast one bucket; returns when the one before is verified and loaded.

        So the trainer puts the next one together meanwhile, and two are in memory at most.
        """
        if not tensors:
            return
        bucket = pack(tensors)
        body = {**bucket.description(), "group_name": self._name}
        self._settle()
        requests = self._session.submit(lambda client, _: client.update_from_collective(body))
        self._broadcast(bucket.flat, requests)
        self._under_way = UnderWay(bucket, requests)

    def commit(self) -> Metrics:
        """Set the version and resume."""
        self._settle()
        self._session.finish()
        return {}

    def close(self) -> None:
        """Leave the group and drop the connections."""
        if self._group is not None:
            self._session.submit(lambda client, _: client.destroy_group(self._name))
        self._group = self._store = None
        self._session.close()

    def _settle(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.settle(self._session)

    def _connect(self) -> None:
        # A new name each time: engines still hold a group that was given up.
        self._name = name = f"slime-{uuid.uuid4().hex[:12]}"
        timeout = timedelta(seconds=self._timeout_s)
        self._store = TCPStore(
            self._host, 0, is_master=True, wait_for_workers=False, timeout=timeout
        )
        world = 1 + sum(target.num_ranks for target in self._session.targets)
        requests = self._session.submit(
            lambda client, target: client.init_group(
                {
                    "master_address": self._host,
                    "master_port": self._store_port,
                    "rank_offset": self._first_rank(target),
                    "world_size": world,
                    "group_name": name,
                    "backend": self._backend,
                },
                timeout_s=self._timeout_s,
            )
        )
        try:
            self._group = _join(self._store, self._backend, name, world, timeout)
        except (RuntimeError, dist.DistError) as error:
            self._session.collect([request for request in requests if request.done()])
            raise WeightSyncError(
                f"the engines did not join the {self._backend} group: {error}"
            ) from error
        self._session.collect(requests)

    @property
    def _store_port(self) -> int:
        assert self._store is not None, "the store is made before the engines are asked to join"
        return self._store.port

    def _first_rank(self, wanted: EngineTarget) -> int:
        rank = 1
        for target in self._session.targets:
            if target is wanted:
                break
            rank += target.num_ranks
        return rank

    def _broadcast(self, flat: Tensor, requests: Sequence[Future[str]]) -> None:
        """Send ``flat``; an engine that fails meanwhile, or a deadline, is an error, no hang."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        try:
            work = self._group.broadcast([flat], options)
            self._wait(work, requests)
            work.wait()  # waits: is done
        except RuntimeError as error:
            self._session.collect([request for request in requests if request.done()])
            raise WeightSyncError(f"broadcasting weights failed: {error}") from error
        if flat.is_cuda:
            torch.cuda.current_stream(flat.device).synchronize()

    def _wait(self, work: Any, requests: Sequence[Future[str]]) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not work.is_completed():
            failed = [r for r in requests if r.done() and r.exception() is not None]
            if failed or time.monotonic() > deadline:
                self._abort()
                self._session.collect(failed)
                raise WeightSyncError(
                    f"an engine did not take part in a broadcast within {self._timeout_s:.0f} s"
                )
            time.sleep(_POLL_S)

    def _abort(self) -> None:
        """Give the group up; the next publish forms another."""
        group, self._group = self._group, None
        if hasattr(group, "abort"):
            group.abort()


def _join(
    store: Store, backend: str, name: str, world: int, timeout: timedelta
) -> "dist.ProcessGroupGloo | dist.ProcessGroupNCCL":
    """Rank 0's end of the group; blocks until every engine has arrived."""
    device = "cuda" if backend == "nccl" else "cpu"
    keys = PrefixStore(name, store)
    keys = PrefixStore(f"{device}/", PrefixStore(f"{name}/", keys))
    if backend == "gloo":
        return dist.ProcessGroupGloo(keys, 0, world, timeout=timeout)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(keys, 0, world, options)


def host_towards(urls: Iterable[str]) -> str:
    """An address of this machine that the engines reach: loopback when all are on it."""
    hosts = [urlsplit(url).hostname or "" for url in urls]
    away = [host for host in hosts if host != "localhost" and not host.startswith("127.")]
    return _address_towards(away[0]) if away else "127.0.0.1"


def _address_towards(host: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # chooses a route: nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
