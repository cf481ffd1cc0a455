"""The generating side, one process, behind the loop's ``Rollout`` verbs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_core.interfaces import BatchHandle, Metrics
from slime_sglang.weights.session import EngineTarget

from slime_train.progress import Progress
from slime_train.run_config import RunConfig
from slime_train.runtime.cluster import Pending, Remote, gather, share


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
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        self._on_progress = on_progress
        self._remote = Remote(
            "rollout worker",
            functools.partial(_RolloutWorker, config, directory),
            peekable=True,
        )
        self._peek: Pending | None = None

    def start(self, load: Path | None) -> Callable[[], RolloutFacts]:
        """Read the prompts and start the engines; the returned function waits for both."""
        call = self._remote.call("start", load)
        return lambda: self._wait(call)

    def generate(self, iteration: int) -> tuple[BatchHandle, Metrics]:
        """Collect the groups of one iteration; one payload per data-parallel rank."""
        return self._wait(self._remote.call("generate", iteration))

    def evaluate(self, version: int) -> Metrics:
        """Score the evaluation sets under the weights ``version``."""
        return self._wait(self._remote.call("evaluate", version))

    def save(self, directory: Path) -> None:
        """Write the position in the prompt stream and the buffer into ``directory``."""
        self._wait(self._remote.call("save", directory))

    def stop(self) -> None:
        """Stop the engines in order."""
        self._wait(self._remote.call("stop"))

    def _wait(self, call: Pending) -> Any:
        try:
            return gather([call], self._timeout_s, self._show_progress)[0]
        finally:
            self._on_progress(None)

    def _show_progress(self) -> None:
        """Ask again once the last answer is in; a busy worker is not asked twice."""
        if self._peek is not None and self._peek.is_done():
            self._on_progress(self._peek.result(0))
            self._peek = None
        if self._peek is None:
            self._peek = self._remote.peek("progress")


class _RolloutWorker:
    def __init__(self, config: RunConfig, directory: Path) -> None:
        from slime_train.logs import log_to_file
        from slime_train.rollout_host import RolloutHost

        log_to_file(directory / "logs" / "rollout.log")
        self._host = RolloutHost(config, directory)

    def start(self, load: Path | None) -> RolloutFacts:
        num_prompts, engines = self._host.start(load)
        return RolloutFacts(num_prompts, tuple(engines))

    def generate(self, iteration: int) -> tuple[list[Any], Metrics]:
        payloads, metrics = self._host.generate(iteration)
        return [share(payload) for payload in payloads], metrics

    def evaluate(self, version: int) -> Metrics:
        return self._host.evaluate(version)

    def save(self, directory: Path) -> None:
        self._host.save(directory)

    def progress(self) -> Progress | None:
        return self._host.progress

    def stop(self) -> None:
        self._host.stop()
