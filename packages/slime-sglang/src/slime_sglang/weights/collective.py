"""Publish by broadcast: NCCL between GPUs, gloo between CPUs; engines may be on any host.

Rank 0 of the group is the trainer, the other ranks are the engines' processes in order. SGLang's
side of the handshake is ``init_custom_process_group``: a TCP store on rank 0, and a backend whose
keys in it are prefixed by the group's name and the device. This is the other side of it.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as settled
from dataclasses import dataclass
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
from slime_sglang.weights.session import EngineTarget, PublishSession, UnderWay

_POLL_S = 0.0005
_JOIN_POLL_S = 0.05
_LEAVE_S = 10.0
"""For engines to answer once a group is given up; one that still waits in it does not."""
_BROADCASTING = "broadcasting weights"


@dataclass(frozen=True, slots=True)
class Broadcast(UnderWay):
    """A bucket that engines are receiving or loading."""

    work: Any
    """torch.distributed's, of rank 0."""
    deadline: float
    """Of time.monotonic()."""


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
        self._session = PublishSession(targets, mode)
        self._backend = backend
        self._host = host
        self._timeout_s = timeout_s
        self._name = ""
        self._store: TCPStore | None = None
        self._group: Any = None
        self._under_way: Broadcast | None = None

    def begin(self, version: int) -> None:
        """Have the engines pause, while the first bucket is put together; form the group once."""
        self._under_way = None
        self._session.open(version)
        self._session.begin_pause()
        if self._group is None:
            self._session.settle_pause()
            self._connect()

    def send(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """Begin to broadcast one bucket, when the one before is verified and loaded.

        So the trainer puts the next one together meanwhile, and two are in memory at most.
        """
        if not tensors:
            return
        bucket = pack(tensors)
        body = {**bucket.description(), "group_name": self._name}
        self._settle()
        timeout_s = self._timeout_s + 2 * _LEAVE_S  # longer than ours, which tells who is late
        requests = self._session.submit(
            lambda client, _: client.update_from_collective(body, timeout_s=timeout_s)
        )
        self._under_way = Broadcast(bucket, requests, *self._begin_broadcast(bucket.flat, requests))

    def commit(self) -> Metrics:
        """Set the version and resume."""
        self._settle()
        self._session.finish()
        return {}

    def close(self) -> None:
        """Have the engines leave the group, also one that was given up; drop the connections."""
        if self._name:
            name = self._name
            leaving = self._session.submit(lambda client, _: client.destroy_group(name))
            settled(leaving, _LEAVE_S)
        self._group = self._store = None
        self._session.close()

    def _settle(self) -> None:
        """Return when the engines have paused, and the bucket under way is loaded."""
        self._session.settle_pause()
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            self._end_broadcast(under_way)
            under_way.settle(self._session)

    def _connect(self) -> None:
        # A new name each time: engines still hold a group that was given up.
        self._name = name = f"slime-{uuid.uuid4().hex[:12]}"
        timeout_s = self._timeout_s + 2 * _LEAVE_S  # ours is first, and tells who is late
        self._store = _open_store(self._host, 0, timeout_s, is_master=True)
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
                timeout_s=timeout_s,
            )
        )
        host, port = self._host, self._store_port

        def join() -> "dist.ProcessGroupGloo | dist.ProcessGroupNCCL":
            # Of its own: when ours is dropped, everyone who waits in it is told.
            store = _open_store(host, port, timeout_s, is_master=False)
            return _join(store, self._backend, name, world, timeout_s)

        with self._explained(requests, f"joining the {self._backend} group"):
            self._group = self._while_all_live(join, requests)
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

    def _begin_broadcast(self, flat: Tensor, requests: Sequence[Future[str]]) -> tuple[Any, float]:
        """The work, once every engine takes part, and its deadline."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        stream = torch.cuda.current_stream(flat.device) if flat.is_cuda else None

        def begin() -> Any:  # the first one forms NCCL's communicator, and blocks
            with torch.cuda.stream(stream):
                return self._group.broadcast([flat], options)

        deadline = time.monotonic() + self._timeout_s
        with self._explained(requests, _BROADCASTING):
            return self._while_all_live(begin, requests), deadline

    def _end_broadcast(self, under_way: "Broadcast") -> None:
        """Return when it is over; an engine that fails before, or the deadline, is an error."""
        with self._explained(under_way.requests, _BROADCASTING):
            while not under_way.work.is_completed():
                self._check(under_way.requests, under_way.deadline)
                time.sleep(_POLL_S)
            under_way.work.wait()  # waits: is done

    @contextlib.contextmanager
    def _explained(self, requests: Sequence[Future[Any]], doing: str) -> Generator[None]:
        """Say of a failure what the engines say of it, else that it was in ``doing``."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            if isinstance(error, WeightSyncError):
                raise
            self._abort()
            self._session.collect([request for request in requests if request.done()])
            raise WeightSyncError(f"{doing} failed: {error}") from error

    def _while_all_live[T](self, call: Callable[[], T], requests: Sequence[Future[Any]]) -> T:
        """What ``call`` returns, which blocks until every engine takes part.

        It runs in a thread, which is left to itself when an engine fails meanwhile.
        """
        result: Future[T] = Future()

        def work() -> None:
            try:
                result.set_result(call())
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=work, name="collective", daemon=True).start()
        deadline = time.monotonic() + self._timeout_s
        while not settled([result], _JOIN_POLL_S).done:
            self._check(requests, deadline)
        return result.result(0)

    def _check(self, requests: Sequence[Future[Any]], deadline: float) -> None:
        """Raise ``WeightSyncError`` when an engine failed, or at the deadline naming the late."""
        failed = [r for r in requests if r.done() and r.exception() is not None]
        if failed:
            self._abort()
            self._session.collect(failed)
        if time.monotonic() > deadline:
            late = [not request.done() for request in requests]
            self._abort()
            settled(requests, _LEAVE_S)  # those that only waited for the others
            urls = [target.url for target in self._session.targets]
            hung = [u for u, r in zip(urls, requests, strict=True) if not r.done()]
            silent = hung or [url for url, is_late in zip(urls, late, strict=True) if is_late]
            raise WeightSyncError(
                f"not every engine took part in the {self._backend} group within "
                f"{self._timeout_s:.0f} s: {', '.join(silent)}",
                silent,
            )

    def _abort(self) -> None:
        """Give the group up, without waiting for what runs in it; the next publish forms another.

        Whoever waits for it to be formed is told by the store, which goes with it.
        """
        left = [self._group, self._store]
        self._group = self._store = None
        if left[0] is not None:
            threading.Thread(target=_end, args=(left,), name="collective", daemon=True).start()


def _end(left: list[Any]) -> None:
    """End the group in ``left``, and the store after it; dropping a group may block as well."""
    if hasattr(left[0], "abort"):
        left[0].abort()
    left.clear()


def _open_store(host: str, port: int, timeout_s: float, *, is_master: bool) -> TCPStore:
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, is_master=is_master, wait_for_workers=False, timeout=timeout)


def _join(
    store: Store, backend: str, name: str, world: int, timeout_s: float
) -> "dist.ProcessGroupGloo | dist.ProcessGroupNCCL":
    """Rank 0's end of the group; blocks until every engine has arrived."""
    timeout = timedelta(seconds=timeout_s)
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
