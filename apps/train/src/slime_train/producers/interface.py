"""What the rollout side of a run asks of whatever makes its groups."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from slime_core.hooks.rollout_functions import EvalResult
from slime_core.interfaces import Metrics
from slime_core.reports.progress import Progress
from slime_core.types import SampleGroup
from slime_sglang.weights.session import EngineTarget

if TYPE_CHECKING:
    from slime_sglang.fleet.engines import Engines


class Producer(Protocol):
    """Makes finished groups; lives in the rollout worker."""

    @property
    def progress(self) -> Progress | None:
        """How far the call under way has come; read from another thread."""
        ...

    @property
    def fleet(self) -> "Engines | None":
        """The engines, where there are any."""
        ...

    def start(self) -> Sequence[EngineTarget]:
        """Get ready; the engines that weights are to be published to."""
        ...

    def __len__(self) -> int:
        """Prompts in an epoch."""
        ...

    def produce(self, iteration: int) -> tuple[Sequence[SampleGroup], Metrics]:
        """The groups of one iteration, finished and scored, in order."""
        ...

    def evaluate(self, version: int) -> EvalResult:
        """Scores of the evaluation sets."""
        ...

    def published(self, version: int) -> None:
        """Hear that the engines serve the weights ``version``; called from another thread."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position in the prompts and everything unfinished, as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue there."""
        ...

    def stop(self) -> None:
        """End what ``start`` started."""
        ...
