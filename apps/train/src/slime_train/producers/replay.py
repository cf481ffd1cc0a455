"""Groups that another run generated and dumped."""

from collections.abc import Mapping, Sequence
from typing import Any

from slime_core.data.dump import read_dump
from slime_core.hooks.rollout_functions import EvalResult
from slime_core.interfaces import Metrics
from slime_core.reports.progress import Progress
from slime_core.types import SampleGroup
from slime_sglang.weights.session import EngineTarget


class Replay:
    """Reads one file per iteration; of every file, the leading share of its groups."""

    progress: Progress | None = None
    fleet: None = None

    def __init__(self, template: str, share: float | None) -> None:
        self._template, self._share = template, share

    def start(self) -> Sequence[EngineTarget]:
        """Nothing to start, nobody to publish to."""
        return ()

    def __len__(self) -> int:
        return 0

    def produce(self, iteration: int) -> tuple[Sequence[SampleGroup], Metrics]:
        """The dumped groups."""
        groups = read_dump(self._template, iteration)
        if self._share is not None:
            groups = groups[: max(1, round(len(groups) * self._share))]
        return groups, {}

    def evaluate(self, version: int) -> EvalResult:
        """There are no engines to evaluate with."""
        return EvalResult({}, {})

    def published(self, version: int) -> None:
        """There are no engines."""

    def state_dict(self) -> dict[str, Any]:
        """The iteration says it all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to continue."""

    def stop(self) -> None:
        """Nothing was started."""
