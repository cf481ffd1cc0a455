"""The process side of ``TrainerGroup``: vectors of samples arrive and leave by reference."""

from collections.abc import Mapping, Sequence
from typing import Any

from slime_core.interfaces import Metrics

from slime_train.runtime.cluster import fetch, share
from slime_train.trainer_host import TrainerHost

_FETCH_TIMEOUT_S = 600.0
_NOTHING: Mapping[str, Any] = {}


class TrainerWorker(TrainerHost):
    """One rank."""

    def train(self, iteration: int, payload: Any, given: Mapping[str, Any] = _NOTHING) -> Metrics:
        """Take the optimizer steps of one iteration."""
        arrived = {name: _merged(handles) for name, handles in given.items()}
        return super().train(iteration, payload, arrived)

    def values(self, payload: Any) -> Any:
        """A handle to the values this rank reports."""
        return share(super().values(payload))

    def returns(self) -> Any:
        """A handle to the returns this rank reports."""
        return share(super().returns())


def _merged(handles: Sequence[Any]) -> dict[int, Any]:
    parts = fetch(handles, _FETCH_TIMEOUT_S)
    return {row: vector for part in parts for row, vector in part.items()}
