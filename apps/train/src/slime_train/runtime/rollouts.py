"""The generating side, one process, behind the loop's ``Rollout`` verbs."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.interfaces import BatchHandle, Metrics
from slime_core.processes.events import starting
from slime_core.processes.heartbeat import WorkerError, announce
from slime_core.processes.logs import log_everything_to_file
from slime_core.reports.progress import Progress
from slime_core.residency import Holding
from slime_sglang.server.launcher import Launcher, Launchers
from slime_sglang.weights.session import EngineTarget

from slime_train.run_config import RunConfig
from slime_train.runtime.cluster import Pending, Remote, gather, share
from slime_train.runtime.placement import Place

_FLEET_S = 600.0
"""For what engines are asked; what they, or their router, do not answer ends before it, by name."""
_CALLS_AT_ONCE = 64  # of a launcher: one for each engine, and what is asked of them meanwhile


@dataclass(frozen=True, slots=True)
class RolloutFacts:
    """What is known once the generating side is up."""

    num_prompts: int
    engines: tuple[EngineTarget, ...]


class RolloutProcess:
    """Prompts, engines, rewards and the buffer, in one process of their own."""

    def __init__(
        self,
        config: RunConfig,
        *,
        directory: Path,
        on_progress: Callable[[Progress | None], None],
        on_wait: Callable[[], None],
        timeout_s: float,
        places: Sequence[Place],
    ) -> None:
        self._timeout_s, self._rollout_s = timeout_s, config.rollout.rollout_timeout_s
        self._places = places  # as long as there are engines
        self._on_progress, self._on_wait = on_progress, on_wait
        self._remote = Remote(
            "rollout worker",
            functools.partial(_RolloutWorker, config, directory, places),
            env=places[0].env,
            place=places[0].options,
            peekable=True,
        )
        self.tend: Callable[[], None] = lambda: None
        """Called while the trainer has nothing to do but to wait for the engines."""
        self._peek = self._remote.beside("progress")
        self._begun: list[Pending] = []

    def start(self, load: Path | None) -> Callable[[], RolloutFacts]:
        """Read the prompts and start the engines; the returned function waits for both."""
        call = self._remote.call("start", load)
        return lambda: self._wait(call)

    def begin(self, iteration: int) -> Callable[[], tuple[BatchHandle, Metrics]]:
        """Start to collect the groups of one iteration; one payload per data-parallel rank.

        Calls are served in their order, while the trainer does something else.
        """
        call = self._remote.call("generate", iteration)
        self._begun.append(call)

        def wait() -> tuple[BatchHandle, Metrics]:
            batch, metrics = self._wait(call, self._rollout_s)
            self._begun.remove(call)
            num_waiting = float(sum(later.is_done() for later in self._begun))
            return batch, {**metrics, "rollout/queue_depth": num_waiting}

        return wait

    def published(self, version: int) -> None:
        """Hear that the engines serve the weights ``version``."""
        self._wait(self._remote.beside("published", version))

    def evaluate(self, version: int) -> Metrics:
        """Score the evaluation sets under the weights ``version``."""
        return self._wait(self._remote.call("evaluate", version), self._rollout_s)

    def fleet(self, verb: str, *args: Any) -> Any:
        """Ask the engines, beside whatever they do."""
        asked = self._remote.beside("fleet", verb, *args)
        return gather([asked], _FLEET_S, self._on_wait)[0]

    def hold(self, what: Holding) -> None:
        """Have the engines, which have nothing to do, keep so much in memory."""
        self.fleet("hold", what)

    def save(self, directory: Path, iteration: int) -> None:
        """Write what is left to do after ``iteration``; whatever is generated goes on meanwhile."""
        self._wait(self._remote.beside("save", directory, iteration))

    def check(self) -> None:
        """Raise what the worker could not get ready for, or who ended; for whoever waits."""
        self._on_wait()
        if self._peek.is_done():
            self._peek.result(0)

    def stop(self) -> None:
        """Stop the engines in order."""
        self._wait(self._remote.call("stop"))

    def _wait(self, call: Pending, rollout_s: float | None = None) -> Any:
        def waiting() -> None:
            self._while_waiting()
            if rollout_s and not call.is_done():
                self.tend()

        try:
            return gather([call], rollout_s or self._timeout_s, waiting)[0]
        except WorkerError as error:
            raise error.set_by("--rollout-timeout-s" if rollout_s else None) from error.__cause__
        finally:
            self._on_progress(None)

    def _while_waiting(self) -> None:
        """Ask again once the last answer is in; a busy worker is not asked twice."""
        self.check()
        if self._peek.is_done():
            self._on_progress(self._peek.result(0))
            self._peek = self._remote.beside("progress")


class _RolloutWorker:
    def __init__(self, config: RunConfig, directory: Path, places: Sequence[Place]) -> None:
        log_everything_to_file(log := directory / "logs" / "rollout.log")
        announce(directory, "rollout_worker", "rollout worker", log)
        with starting("rollout worker: libraries imported"):
            from slime_train.rollout_host import RolloutHost
        with starting("tokenizer and prompts opened"):
            self._host = RolloutHost(config, directory, _launchers(config, directory, places))

    def start(self, load: Path | None) -> RolloutFacts:
        num_prompts, engines = self._host.start(load)
        return RolloutFacts(num_prompts, tuple(engines))

    def generate(self, iteration: int) -> tuple[list[Any], Metrics]:
        payloads, metrics = self._host.generate(iteration)
        return [share(payload) for payload in payloads], metrics

    def evaluate(self, version: int) -> Metrics:
        return self._host.evaluate(version)

    def published(self, version: int) -> None:
        self._host.published(version)

    def save(self, directory: Path, iteration: int) -> None:
        self._host.save(directory, iteration)

    def fleet(self, verb: str, *args: Any) -> Any:
        return self._host.fleet(verb, *args)

    def progress(self) -> Progress | None:
        return self._host.progress

    def stop(self) -> None:
        self._host.stop()


def _launchers(config: RunConfig, directory: Path, places: Sequence[Place]) -> Launchers:
    """A process on each machine with engines, where there are several; it ends with this one."""
    return {
        number: Remote(
            name := f"launcher {number}",
            functools.partial(_launcher, directory, name),
            env=place.env,
            place={**place.options, "max_concurrency": _CALLS_AT_ONCE},
        )
        for number, place in enumerate(places)
        if len(places) > 1 and config.machines[number].engines
    }


def _launcher(directory: Path, name: str) -> Launcher:
    log_everything_to_file(log := directory / "logs" / f"{name.replace(' ', '-')}.log")
    announce(directory, "launcher", name, log)
    return Launcher()
