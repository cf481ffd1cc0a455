"""Start the processes of a run and hand the loop what it talks to."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.checkpoints.commit import Checkpoints
from slime_core.checkpoints.resume import Resume
from slime_core.config.machines import rooms
from slime_core.interfaces import Metrics, Trainer
from slime_core.iterations import num_iterations
from slime_core.no_trainer import NoTrainer
from slime_core.processes.events import FILE_NAME, Events
from slime_core.reports.phases import Phases
from slime_core.reports.progress import Progress
from slime_core.residency import TakingTurns
from slime_megatron.meeting import Meeting
from slime_sglang.fleet.health import HealthSpec
from slime_sglang.fleet.readmission import Connectable, Readmission, RemoteFleet

from slime_train.actor_critic import ActorCritic
from slime_train.loop import Cadence, Job
from slime_train.run_config import RunConfig, continued
from slime_train.runtime.placement import Place, reserve
from slime_train.runtime.rollouts import RolloutFacts, RolloutProcess
from slime_train.runtime.trainers import TrainerGroup

if TYPE_CHECKING:
    from slime_megatron.iteration.objective import Role

logger = logging.getLogger(__name__)

AnyTrainer = TrainerGroup | ActorCritic | NoTrainer

WORK_TIMEOUT_S = 4 * 3600.0
"""For one verb of the loop; hung collectives and requests end sooner, by timeouts of their own."""


@dataclass(frozen=True, slots=True)
class Screen:
    """Where a run shows what it does."""

    say: Callable[[str], None]
    progress: Callable[[Progress | None], None]
    log: Callable[[int, Metrics], None]
    on_wait: Callable[[], None] = lambda: None
    """Called about twice a second while the driver waits for a process."""


@dataclass(frozen=True, slots=True)
class Composition:
    """A started job, and how to end it in order."""

    job: Job
    cadence: Cadence
    close: Callable[[], None]


def compose(config: RunConfig, directory: Path, screen: Screen, resume: Resume) -> Composition:
    """Start trainer and engines side by side; return once both are ready."""
    origin = resume.find()
    config = continued(config) if origin.own else config
    rollout, trainer = _processes(config, directory, screen)
    screen.say("starting the trainer and the engines")
    meeting = Meeting(directory)
    first, facts = _start(config, rollout, trainer, meeting.address, origin.directory)
    checkpoints = Checkpoints.of(config, trainer, rollout)
    job = Job(
        rollout=rollout,
        trainer=_surviving(config, trainer, rollout) if facts.engines else trainer,
        residency=TakingTurns.of(config.cluster, trainer, rollout),
        save=checkpoints.save,
        commit=lambda: checkpoints.finish(wait=False),
        log=screen.log,
        phase=Phases(Events(directory / FILE_NAME)),
    )

    def close() -> None:
        checkpoints.finish(wait=True)
        rollout.stop()
        trainer.shutdown()
        meeting.close()

    return Composition(job, cadence(config, first, facts), close)


def _processes(
    config: RunConfig, directory: Path, screen: Screen
) -> tuple[RolloutProcess, AnyTrainer]:
    """Both sides, each on its machines; neither has begun to load anything."""
    places = reserve(config.cluster, rooms(config.machines, 1 + (config.of_critic is not None)))
    rollout = RolloutProcess(
        config,
        directory=directory,
        on_progress=screen.progress,
        on_wait=screen.on_wait,
        timeout_s=WORK_TIMEOUT_S,
        places=places,
    )
    return rollout, make_trainer(config, directory / "logs", rollout.check, places)


def _start(
    config: RunConfig,
    rollout: RolloutProcess,
    trainer: AnyTrainer,
    rendezvous: str,
    checkpoint: Path | None,
) -> tuple[int, RolloutFacts]:
    """Have both sides load; which iteration is the first, and what the engines are."""
    offload = config.cluster.offload_train
    in_turns = offload and config.cluster.device == "cuda"
    engines = None if in_turns else rollout.start(checkpoint)
    first, seconds = trainer.initialize(rendezvous, checkpoint)()
    if offload:
        trainer.hold("nothing")
    if engines is None:  # they divide the memory that the trainer leaves
        engines = rollout.start(checkpoint)
    facts = engines()
    trainer.connect(facts.engines)
    logger.info("the trainer took %s", {name: round(s, 2) for name, s in seconds.items()})
    return first, facts


def _surviving(config: RunConfig, trainer: Connectable, rollout: RolloutProcess) -> Trainer:
    """With --use-fault-tolerance, a trainer whose publishes survive the loss of engines."""
    health = HealthSpec.of(config.health)
    if health is None:
        return trainer
    fleet, told = RemoteFleet(rollout.fleet), rollout.published
    surviving = Readmission(trainer, fleet, published=told, notice_s=health.notice_s)
    rollout.tend = surviving.tend
    return surviving


def make_trainer(
    config: RunConfig, logs: Path, on_wait: Callable[[], None], places: Sequence[Place]
) -> AnyTrainer:
    """The policy's ranks, and with --advantage-estimator ppo those of its critic beside them."""
    if config.debug.debug_rollout_only:
        return NoTrainer()

    def group(role: "Role", its: RunConfig) -> TrainerGroup:
        limit = WORK_TIMEOUT_S
        return TrainerGroup(
            its, logs=logs, on_wait=on_wait, timeout_s=limit, places=places, role=role
        )

    actor = group("actor", config)
    if config.of_critic is None:
        return actor
    return ActorCritic(actor, group("critic", config.of_critic))


def cadence(config: RunConfig, first: int, facts: RolloutFacts) -> Cadence:
    """When to do what, for a run that starts at iteration ``first``."""
    if config.data.start_rollout_id is not None:
        first = config.data.start_rollout_id
    last = num_iterations(config.rollout, config.data, facts.num_prompts)
    evaluation, checkpoint = config.evaluation, config.checkpoint
    return Cadence(
        first=first,
        last=max(first, last),
        publish_every=config.sync.update_weights_interval,
        eval_every=evaluation.eval_interval or last if evaluation.evaluates else None,
        save_every=checkpoint.save_interval or last if checkpoint.saves else None,
        eval_before_training=evaluation.before_training,
        ahead=config.rollout.async_buffer_size or 0,
    )
