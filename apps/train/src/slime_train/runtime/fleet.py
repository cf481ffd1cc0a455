"""Engines that come and go, seen by the driver: ``slime_sglang.readmission`` over a process."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slime_sglang.readmission import Connectable, Readmission
from slime_sglang.weights.session import FleetStatus

from slime_train.run_config import RunConfig
from slime_train.runtime.cluster import Remote, gather

if TYPE_CHECKING:
    from slime_train.runtime.rollouts import RolloutProcess

_ANSWER_S = 120.0
"""For what is asked of the engines; the router may have to be waited for."""
_START_S = 1800.0


class RolloutFleet:
    """``Fleet``: asks the rollout worker beside whatever it does."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def status(self) -> FleetStatus:
        """Who is up."""
        return self._ask("fleet", "status")

    def publishing(self, urls: Sequence[str]) -> None:
        """These are paused for a publish."""
        self._ask("fleet", "publishing", urls)

    def admit(self, urls: Sequence[str]) -> None:
        """These have the current weights."""
        self._ask("fleet", "admit", urls)

    def published(self, version: int) -> None:
        """Every engine has these weights, or later ones."""
        self._ask("published", version)

    def _ask(self, verb: str, *args: Any) -> Any:
        return gather([self._remote.beside(verb, *args)], _ANSWER_S, lambda: None)[0]


def surviving[T: Connectable](
    config: RunConfig, trainer: T, rollout: "RolloutProcess"
) -> T | Readmission:
    """With --use-fault-tolerance, a trainer whose publishes survive the loss of engines."""
    health = config.health
    if not health.use_fault_tolerance:
        return trainer
    notice_s = health.rollout_health_check_interval + health.rollout_health_check_timeout
    surviving = Readmission(trainer, rollout.fleet, notice_s=notice_s, start_s=_START_S)
    rollout.tend = surviving.tend
    return surviving
