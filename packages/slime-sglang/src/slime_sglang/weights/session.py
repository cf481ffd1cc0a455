"""What every transport does to the engines before and after the weights: pause, version, resume."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slime_core.config.sync import UpdateMode
from slime_core.errors import EngineError, WeightSyncError

from slime_sglang.client import EngineClient, SilentEngineError

if TYPE_CHECKING:
    from slime_sglang.weights.bucket import Bucket  # torch stays out of the driver


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """Where one engine listens and how many ranks hold its weights; crosses processes."""

    url: str
    num_ranks: int = 1
    machine: int = 0
    """Which one of the run's it is on."""


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """Engines that are up; crosses processes."""

    num_losses: int
    """How often an engine or the router was lost so far."""
    serving: tuple[EngineTarget, ...]
    waiting: tuple[EngineTarget, ...]
    """Those that were started again and have no weights of the trainer yet."""

    @property
    def up(self) -> tuple[EngineTarget, ...]:
        """All of them."""
        return self.serving + self.waiting


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A bucket that engines are loading; its memory has to live until they have."""

    bucket: "Bucket"
    requests: Sequence[Future[str]]

    def settle(self, session: "PublishSession") -> None:
        """Return when every engine has verified and loaded it."""
        session.check_receipts(session.collect(self.requests), self.bucket.receipt)


class PublishSession:
    """The engines of one publish after another; lives in the trainer's process."""

    def __init__(self, targets: Sequence[EngineTarget], mode: UpdateMode = "abort") -> None:
        if not targets:
            raise WeightSyncError("there is no engine to publish weights to")
        self.targets = tuple(targets)
        self._clients = [EngineClient(target.url) for target in targets]
        self._pool = ThreadPoolExecutor(2 * len(targets), "publish")
        self._pausing: Sequence[Future[None]] = ()
        self._mode: UpdateMode = mode
        self._version: int | None = None

    @property
    def version(self) -> int:
        """The version being published."""
        if self._version is None:
            raise WeightSyncError("weights were sent outside of begin() and commit()")
        return self._version

    def open(self, version: int) -> None:
        """Remember which version comes next."""
        self._version = version

    def begin_pause(self) -> None:
        """Have all engines stop and forget what they cached under the old weights."""
        self._pausing = self.submit(lambda client, _: self._pause(client))

    def settle_pause(self) -> None:
        """Return when they have, if they were told to."""
        pausing, self._pausing = self._pausing, ()
        self.collect(pausing)

    def pause(self) -> None:
        """``begin_pause`` and ``settle_pause``."""
        self.begin_pause()
        self.settle_pause()

    def _pause(self, client: EngineClient) -> None:
        client.pause(self._mode)
        if self._mode == "abort":  # otherwise there are requests, and an engine flushes when idle
            client.flush_cache()

    def finish(self) -> None:
        """Set the version everywhere, resume, and check that every engine reports it."""
        self.settle_pause()
        wanted = str(self.version)
        self.each(lambda client, _: client.set_weight_version(wanted))
        reports = self.submit(lambda client, _: client.weight_version())
        self.each(lambda client, _: client.resume())
        for target, version in zip(self.targets, self.collect(reports), strict=True):
            if version != wanted:
                raise WeightSyncError(
                    f"engine {target.url} reports weight version {version!r} after a publish "
                    f"of {wanted!r}"
                )
        self._version = None

    def submit[T](self, call: Callable[[EngineClient, EngineTarget], T]) -> list[Future[T]]:
        """Run ``call`` for every engine at once."""
        pairs = zip(self._clients, self.targets, strict=True)
        return [self._pool.submit(call, client, target) for client, target in pairs]

    def collect[T](self, futures: Sequence[Future[T]]) -> list[T]:
        """Every engine's result.

        Raises:
            WeightSyncError: the reasons of those that failed, and who was silent.
        """
        problems: list[str] = []
        silent: list[str] = []
        results: list[T] = []
        for future in futures:
            try:
                results.append(future.result())  # waits: requests have deadlines
            except EngineError as error:
                problems.append(str(error))
                if isinstance(error, SilentEngineError):
                    silent.append(error.url)
        if problems:
            raise WeightSyncError("; ".join(problems), silent)
        return results

    def each[T](self, call: Callable[[EngineClient, EngineTarget], T]) -> list[T]:
        """``submit`` and ``collect``."""
        return self.collect(self.submit(call))

    def check_receipts(self, messages: Sequence[str], receipt: str) -> None:
        """Raise ``WeightSyncError`` unless every engine confirmed what it verified."""
        for target, message in zip(self.targets, messages, strict=True):
            if receipt not in message:
                raise WeightSyncError(
                    f"engine {target.url} loaded weights without confirming their digests "
                    f"(it answered {message!r}): its SGLang runs without slime's plugin"
                )

    def close(self) -> None:
        """Drop connections and threads."""
        for client in self._clients:
            client.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
