"""Training on given responses: the groups of an iteration are rows of the data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slime_core.data.stream import PromptStream
from slime_core.hooks.rollout_functions import EvalResult
from slime_core.interfaces import Metrics
from slime_core.reports.progress import Progress
from slime_core.types import SampleGroup
from slime_sglang.weights.session import EngineTarget


class Recorded:
    """Takes rows from the stream; ``complete`` tokenizes them with the answers they hold."""

    progress: Progress | None = None
    fleet: None = None

    def __init__(
        self,
        stream: PromptStream,
        num_groups: int,
        complete: Callable[[SampleGroup], SampleGroup],
    ) -> None:
        self._stream, self._num_groups, self._complete = stream, num_groups, complete

    def start(self) -> Sequence[EngineTarget]:
        """Nothing to start, nobody to publish to."""
        return ()

    def __len__(self) -> int:
        return len(self._stream)

    def produce(self, iteration: int) -> tuple[Sequence[SampleGroup], Metrics]:
        """The next rows, tokenized."""
        groups = [self._complete(group) for group in self._stream.take(self._num_groups)]
        self._stream.ledger.train(groups)
        self._stream.settle()
        return groups, self._stream.metrics()

    def evaluate(self, version: int) -> EvalResult:
        """There are no engines to evaluate with."""
        return EvalResult({}, {})

    def published(self, version: int) -> None:
        """There are no engines."""

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue there."""
        self._stream.load_state_dict(state)

    def stop(self) -> None:
        """End the processes that read ahead."""
        self._stream.close()
