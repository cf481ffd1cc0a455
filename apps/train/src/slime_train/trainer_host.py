"""One rank of the trainer, as a run needs it: knows the engines, dumps what it trains on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from slime_core.data.dump import write_whole
from slime_core.interfaces import Metrics
from slime_core.processes.this_machine import meeting_place
from slime_core.residency import Holding
from slime_megatron.iteration.objective import Role
from slime_megatron.iteration.stages import NOTHING
from slime_megatron.trainer import RankPayload, SampleVectors, TrainerConfig, TrainerRank
from slime_sglang.weights.changing import ChangingReceiver
from slime_sglang.weights.select import make_receiver, senders
from slime_sglang.weights.session import EngineTarget

from slime_train.run_config import RunConfig


class TrainerHost:
    """Lives in the rank's process; every rank's methods are called in the same order."""

    def __init__(self, config: RunConfig, rank: int, world_size: int, role: Role = "actor") -> None:
        self._config, self._rank, self._role = config, rank, role
        self._engines: Mapping[int, tuple[EngineTarget, ...]] = {}
        settings = _trainer_config(config, role)
        self._receiver = ChangingReceiver(
            lambda: make_receiver(config.sync, config.cluster, config.flat, self._engines[rank])
        )
        self._trainer = TrainerRank(settings, rank, world_size, lambda: self._receiver)

    def initialize(self, rendezvous: str, load: Path | None) -> tuple[int, Mapping[str, float]]:
        """Build the model; the first iteration to train, and seconds by part."""
        seconds = self._trainer.initialize(rendezvous, load)
        return self._trainer.iteration, seconds

    def meeting_place(self) -> str:
        """Where the ranks can meet, if this is the first."""
        return meeting_place()

    def connect(self, engines: Sequence[EngineTarget]) -> None:
        """Remember whom to publish to, and which ranks do."""
        self._engines = senders(self._config.sync, self._config.cluster, engines)
        self._receiver.change()

    def train(
        self, iteration: int, payload: RankPayload, given: Mapping[str, SampleVectors] = NOTHING
    ) -> Metrics:
        """Take the optimizer steps of one iteration."""
        template = self._config.debug.save_debug_train_data
        if template is not None and self._role == "actor":
            path = Path(template.format(rollout_id=iteration, rank=self._rank))
            write_whole(path, {"rollout_id": iteration, "rank": self._rank, **payload.plain()})
        return self._trainer.train(iteration, payload, given)

    def values(self, payload: RankPayload) -> SampleVectors:
        """A critic's values, on the ranks that report."""
        return self._trainer.values(payload)

    def returns(self) -> SampleVectors:
        """An actor's returns of the last iteration, on the ranks that report."""
        return self._trainer.returns()

    def publish(self, version: int) -> Metrics:
        """Send the weights to the engines, if there are any."""
        return self._trainer.publish(version, senders=tuple(self._engines))

    def hold(self, what: Holding) -> float:
        """Keep so much in device memory; bytes of host memory for the rest."""
        return self._trainer.hold(what)

    def save(self, directory: Path, iteration: int) -> None:
        """Write the training state into ``directory``."""
        self._trainer.save(directory, iteration)

    def finish_save(self, wait: bool) -> bool:
        """Whether the save under way, if any, is complete."""
        return self._trainer.finish_save(wait)

    def save_hf(self, directory: Path) -> None:
        """Write the weights as a Hugging Face checkpoint."""
        self._trainer.save_hf(directory)

    def shutdown(self) -> None:
        """Leave the process group."""
        self._trainer.shutdown()


def _trainer_config(config: RunConfig, role: Role) -> TrainerConfig:
    return TrainerConfig(
        role=role,
        megatron=config.megatron,
        model=config.model,
        batch=config.batch,
        advantage=config.advantage,
        policy_loss=config.policy_loss,
        off_policy=config.off_policy,
        reference=config.reference,
        distillation=config.distillation,
        critic=config.critic,
        preference=config.preference,
        optimizer=config.optimizer,
        checkpoint=config.checkpoint,
        sync=config.sync,
        debug=config.debug,
        rollout_data_postprocess_path=config.rollout.rollout_data_postprocess_path,
        temperature=config.sampling.rollout_temperature,
        top_p=config.sampling.rollout_top_p,
        device=config.cluster.device,
        flat=config.flat,
    )
