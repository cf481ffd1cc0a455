"""Two models that train in turn: the critic judges, the actor moves, the critic learns."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.errors import CheckpointError
from slime_core.interfaces import BatchHandle, Metrics
from slime_core.residency import Holding

if TYPE_CHECKING:
    from slime_sglang.weights.session import EngineTarget  # loads a client of the engines

    from slime_train.runtime.trainers import TrainerGroup  # Ray is spoken there

CRITIC = "critic"
"""Where a checkpoint keeps the critic."""


class ActorCritic:
    """The loop's ``Trainer`` verbs for --advantage-estimator ppo.

    One iteration:  values = critic(samples);  the actor estimates advantages and returns from them
    and takes its steps;  the critic takes its own towards the returns.
    """

    def __init__(self, actor: "TrainerGroup", critic: "TrainerGroup") -> None:
        self._actor, self._critic = actor, critic

    def initialize(
        self, rendezvous: str, load: Path | None
    ) -> Callable[[], tuple[int, Mapping[str, float]]]:
        """Start building both; see ``TrainerGroup.initialize``."""
        if load is not None and not (load / CRITIC).is_dir():
            raise CheckpointError(
                f"{load} holds no critic: it was written by a run without --advantage-estimator "
                "ppo. Give its weights with --hf-checkpoint, as --save-hf writes them"
            )
        actor = self._actor.initialize(rendezvous, load)
        critic = self._critic.initialize(f"{rendezvous}-{CRITIC}", load and load / CRITIC)

        def ready() -> tuple[int, Mapping[str, float]]:
            first, seconds = actor()
            _, more = critic()
            return first, {**seconds, **{f"critic_{name}": s for name, s in more.items()}}

        return ready

    def connect(self, engines: Sequence["EngineTarget"]) -> None:
        """Tell the actor which engines to publish to."""
        self._actor.connect(engines)

    def train(self, iteration: int, batch: BatchHandle) -> Metrics:
        """Take the optimizer steps of both."""
        values = self._critic.values(batch)
        moved = self._actor.train(iteration, batch, {"values": values})
        given = {"values": values, "returns": self._actor.returns()}
        return {**moved, **self._critic.train(iteration, batch, given)}

    def publish(self, version: int) -> Metrics:
        """Make the engines serve the actor's weights."""
        return self._actor.publish(version)

    def hold(self, what: Holding) -> float:
        """Both keep so much in device memory; bytes of host memory for the rest."""
        return self._actor.hold(what) + self._critic.hold(what)

    def save(self, directory: Path, iteration: int) -> None:
        """Write both into one checkpoint."""
        self._actor.save(directory, iteration)
        (directory / CRITIC).mkdir()
        self._critic.save(directory / CRITIC, iteration)

    def finish_save(self, wait: bool) -> bool:
        """Whether what ``save`` started is complete."""
        both = [group.finish_save(wait) for group in (self._actor, self._critic)]
        return all(both)

    def save_hf(self, directory: Path) -> None:
        """Write the actor as a Hugging Face checkpoint."""
        self._actor.save_hf(directory)

    def shutdown(self) -> None:
        """Leave both process groups in order."""
        self._actor.shutdown()
        self._critic.shutdown()
