"""The trainer of a run whose engines come and go: whoever is up gets weights before requests."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from slime_core.errors import EngineError, WeightSyncError
from slime_core.interfaces import BatchHandle, Metrics, Trainer

from slime_sglang.weights.session import EngineTarget, FleetStatus

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_START_S = 1800.0


class Connectable(Trainer, Protocol):
    """A trainer that can be told of other engines."""

    def connect(self, engines: Sequence[EngineTarget]) -> None:
        """Publish to these from now on."""
        ...


class Fleet(Protocol):
    """The engines, from another process; every method raises ``EngineError`` when all is lost."""

    def status(self) -> FleetStatus:
        """Who is up."""
        ...

    def publishing(self, urls: Sequence[str]) -> None:
        """These are paused for a publish."""
        ...

    def admit(self, urls: Sequence[str]) -> None:
        """These have the current weights."""
        ...

    def unanswered(self, urls: Sequence[str], why: str) -> None:
        """These did not answer a publish in time."""
        ...


class RemoteFleet:
    """``Fleet`` over whatever carries a question to the engines' process."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        """``ask(verb, *args)`` calls a method of ``slime_sglang.fleet.engines.Engines``."""
        self._ask = ask

    def status(self) -> FleetStatus:
        """Who is up."""
        return self._ask("status")

    def publishing(self, urls: Sequence[str]) -> None:
        """These are paused for a publish."""
        self._ask("publishing", urls)

    def admit(self, urls: Sequence[str]) -> None:
        """These have the current weights."""
        self._ask("admit", urls)

    def unanswered(self, urls: Sequence[str], why: str) -> None:
        """These did not answer a publish in time."""
        self._ask("unanswered", urls, why)


class Readmission:
    """``Trainer`` that publishes to the engines that are up, and again when one is lost meanwhile.

    Engines that come back while nothing is published wait for ``tend``.
    """

    def __init__(
        self,
        trainer: Connectable,
        fleet: Fleet,
        *,
        published: Callable[[int], None],
        notice_s: float,
        start_s: float = _START_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``published`` hears of newer weights.

        ``notice_s``: until a loss is noticed at the latest; ``start_s``: until it is made up.
        """
        self._trainer, self._fleet = trainer, fleet
        self._tell, self._notice_s, self._start_s = published, notice_s, start_s
        self._sleep = sleep
        self._published: int | None = None
        self._current: int | None = None
        self._targets: tuple[EngineTarget, ...] | None = None

    def train(self, iteration: int, batch: BatchHandle) -> Metrics:
        """Take the optimizer steps of one iteration."""
        metrics = self._trainer.train(iteration, batch)
        self._current = iteration + 1
        return metrics

    def publish(self, version: int) -> Metrics:
        """Every engine that is up serves the current weights as ``version``, verified.

        Raises:
            WeightSyncError: a publish failed, and no engine was lost.
            EngineError: engines are lost again and again.
        """
        while True:
            status = self._await_someone()
            metrics = self._publish_to(status.up, version, status)
            if metrics is not None:
                self._published = self._current = version
                return metrics

    def save(self, directory: Path, iteration: int) -> None:
        """Write the training state into ``directory``."""
        self._trainer.save(directory, iteration)

    def tend(self) -> None:
        """Give weights to engines that wait for them; called while the trainer has nothing to do.

        They get what the others serve. Where the trainer has gone on since, because weights are
        not published after every iteration, all engines get the newer ones.
        """
        version = self._current
        if version is None:
            return
        status = self._fleet.status()
        if not status.waiting:
            return
        newer = version != self._published
        logger.info("publishing version %d to engines that came back", version)
        targets = status.up if newer else status.waiting
        if self._publish_to(targets, version, status) is not None and newer:
            self._published = version
            self._tell(version)

    def _publish_to(
        self, targets: tuple[EngineTarget, ...], version: int, before: FleetStatus
    ) -> Metrics | None:
        """None when an engine was lost meanwhile."""
        urls = [target.url for target in targets]
        try:
            self._fleet.publishing(urls)
            if targets != self._targets:
                self._targets = None
                self._trainer.connect(targets)
                self._targets = targets
            metrics = self._trainer.publish(version)
            self._fleet.admit(urls)
        except (EngineError, WeightSyncError) as error:
            self._targets = None  # what is left of the connections is not used again
            if isinstance(error, WeightSyncError) and error.silent:
                self._fleet.unanswered(error.silent, f"did not take part in a publish ({error})")
            self._await_loss(before, error)
            return None
        return metrics

    def _await_someone(self) -> FleetStatus:
        deadline = time.monotonic() + self._start_s
        while not (status := self._fleet.status()).up:
            if time.monotonic() > deadline:
                raise EngineError(f"no engine has come back within {self._start_s:.0f} s")
            self._sleep(_POLL_S)
        return status

    def _await_loss(self, before: FleetStatus, error: EngineError | WeightSyncError) -> None:
        """Return when an engine turns out to have been lost; otherwise raise ``error``."""
        deadline = time.monotonic() + self._notice_s
        while self._fleet.status().num_losses == before.num_losses:
            if time.monotonic() > deadline:
                raise error
            self._sleep(_POLL_S)
        logger.warning("a publish is repeated without the engine that was lost: %s", error)
