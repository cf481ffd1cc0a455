"""One rank of the trainer: the model, its optimizer, and what the loop asks of them."""

import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from slime_core.errors import ConfigError
from slime_core.interfaces import Metrics, WeightReceiver
from slime_core.processes import events
from slime_core.reports.ci_checks import check_grad_norms, check_iteration
from slime_core.residency import Holding

from slime_megatron.iteration.objective import OLD_ACTOR, REFERENCE
from slime_megatron.iteration.report import (
    Report,
    actor_metrics,
    critic_metrics,
    skipped_in_a_row,
    step_metrics,
)
from slime_megatron.iteration.signals import Vectors
from slime_megatron.iteration.stages import (
    NOTHING,
    RankPayload,
    SampleVectors,
    score_iteration,
    train_iteration,
)
from slime_megatron.processes import no_gpu
from slime_megatron.trainer_config import TrainerConfig
from slime_megatron.trainer_hooks import trainer_hooks

if TYPE_CHECKING:
    from slime_megatron.mcore.passes.model_passes import ModelPasses
    from slime_megatron.mcore.residence import Residence
    from slime_megatron.mcore.state import TrainState
    from slime_megatron.mcore.weights.snapshots import Snapshots

__all__ = ["RankPayload", "SampleVectors", "TrainerConfig", "TrainerRank"]


class TrainerRank:
    """One process of the trainer. Every rank's methods are called in the same order.

    Created in its own process, before anything has imported Megatron; ``initialize`` once, then the
    other verbs in any order, ``shutdown`` last. All methods may be called from any thread, one at a
    time.
    """

    def __init__(
        self,
        config: TrainerConfig,
        rank: int,
        world_size: int,
        receiver_factory: Callable[[], WeightReceiver] | None = None,
    ) -> None:
        self._config = config
        self._objective = config.objective
        self._hooks = trainer_hooks(config.debug, config.flat)
        self._rank = rank
        self._world_size = world_size
        self._receiver_factory = receiver_factory
        self._receiver: WeightReceiver | None = None
        self._pending_save: Any = None
        self._iteration = self._skipped = 0
        self._last_report = Report()
        self._returns: SampleVectors = {}
        self._state: TrainState
        self._snapshots: Snapshots
        self._passes: ModelPasses
        self._residence: Residence

    @property
    def iteration(self) -> int:
        """The first iteration to train: after the checkpoint that was loaded, else 0."""
        return self._iteration

    @property
    def steps(self) -> list[Mapping[str, float]]:
        """``train/*`` of every optimizer step of the last iteration, in order; on rank 0."""
        return [step_metrics(step) for step in self._last_report.steps]

    def initialize(
        self, rendezvous: str | None = None, load: Path | None = None
    ) -> Mapping[str, float]:
        """Join the other ranks and build the model; return how long the parts took, in seconds.

        Args:
            rendezvous: where the ranks meet: ``tcp://host:port`` or ``file:///path``; None for
                ``MASTER_ADDR`` and ``MASTER_PORT``, or for a single rank.
            load: a complete checkpoint to continue from; without it the weights come from --load,
                if that is a Hugging Face directory, else from --hf-checkpoint.
        """
        seconds: dict[str, float] = {}
        with self._starting("Megatron imported", seconds, "import_s"):
            on_cpu = self._bootstrap()
        with self._starting("model built", seconds, "build_s"):
            self._build(_device(self._rank, on_cpu=on_cpu), rendezvous)
        with self._starting("weights loaded", seconds, "load_s"):
            self._load_weights(load)
        return seconds

    def train(
        self,
        iteration: int,
        payload: RankPayload,
        given: Mapping[str, SampleVectors] = NOTHING,
    ) -> Metrics:
        """Take the optimizer steps of one iteration; metrics on rank 0, nothing elsewhere.

        ``given``: what another trainer found out about all samples of the iteration: to an actor
        the critic's ``values``, to a critic its own ``values`` and the actor's ``returns``. An
        actor waits for its critic: it takes no steps in the first --num-critic-only-steps
        iterations, but estimates advantages and returns.
        """
        self._bootstrap()
        from slime_megatron.mcore.optimizer import adam_state
        from slime_megatron.mcore.ranks.last_stage import from_last_stage

        self._residence.hold("everything")
        start = time.perf_counter()
        if self._config.optimizer.reset_optimizer_states:
            adam_state.reset(self._state.optimizer)
        is_actor = self._objective.role == "actor"
        waits = is_actor and iteration < self._config.critic.num_critic_only_steps
        self._passes.begin(iteration)
        report, vectors = train_iteration(
            self._passes,
            payload,
            self._objective,
            iteration=iteration,
            given=given,
            updates=not waits,
        )
        checks = self._state.args.check_for_nan_in_loss_and_grad
        limit = self._config.optimizer.max_skipped_steps if checks else None
        self._skipped = skipped_in_a_row(self._skipped, report.steps, limit)
        report = from_last_stage(report)
        self._keep_returns(payload, vectors)
        self._renew_reference(iteration)
        if self._rank:
            return {}  # one rank speaks for all: sums were taken over them
        report.seconds["train"] = time.perf_counter() - start
        self._last_report = report
        self._check(iteration, report)
        return actor_metrics(report) if is_actor else critic_metrics(report)

    def _keep_returns(self, payload: RankPayload, vectors: Vectors) -> None:
        """For the critic, which asks for them after the actor's steps."""
        self._returns = {}
        if self._passes.reports and vectors.returns is not None and payload.rows:
            self._returns = payload.named(vectors.returns)

    def _renew_reference(self, iteration: int) -> None:
        """Every --ref-update-interval iterations the reference becomes the policy."""
        interval = self._config.reference.ref_update_interval
        if interval and self._needs(REFERENCE) and (iteration + 1) % interval == 0:
            self._snapshots.store(REFERENCE)

    def _check(self, iteration: int, report: Report) -> None:
        """--ci-test and its companions; on rank 0, whose failure ends the run."""
        config, steps = self._config, report.steps
        check_iteration(
            config.debug,
            iteration,
            steps[0].metrics if steps else {},
            report.rollout,
            recomputed=not config.off_policy.use_rollout_logprobs,
            same_reference=config.reference.ref_load in (None, config.model.hf_checkpoint),
        )
        norms = [step.grad_norm for step in steps]
        check_grad_norms(config.debug, self._objective.role, iteration, norms)

    def values(self, payload: RankPayload) -> SampleVectors:
        """A critic's values of every response token, before its steps.

        Nothing on ranks that only hold a part, or a copy, of what another one reports.
        """
        self._bootstrap()
        self._residence.hold("everything")
        found = score_iteration(self._passes, payload)
        return payload.named(found) if found and self._passes.reports else {}

    def returns(self) -> SampleVectors:
        """The returns that the last ``train`` estimated, on the ranks that report."""
        return self._returns

    def publish(self, version: int, *, senders: Collection[int] = (0,)) -> Metrics:
        """Make the engines serve the current weights as ``version``.

        With --keep-old-actor they are kept as those that draw the next tokens. ``senders``: ranks
        that hand them to engines, none where there are no engines. Timings on those.
        """
        self._bootstrap()
        from slime_megatron.publish import publish

        if self._needs(OLD_ACTOR):
            with self._residence.at_least("weights"):
                self._snapshots.store(OLD_ACTOR)
        if not senders:
            return {}
        sends = self._rank in senders
        if sends and self._receiver is None:
            assert self._receiver_factory is not None, "a sender was given no receiver factory"
            self._receiver = self._receiver_factory()
        size, receiver = self._config.sync.update_weight_buffer_size, self._receiver
        with self._residence.at_least("weights"):
            return publish(self._state, receiver if sends else None, version, size, senders)

    def hold(self, what: Holding) -> float:
        """Keep so much in device memory; the bytes that host memory has for the rest.

        On a CPU only gradients are given up: the rest is in host memory as it is. Whoever needs
        what is away gets it back: ``train`` and ``values`` for good, ``publish`` and ``save`` while
        they last.
        """
        self._bootstrap()
        return float(self._residence.hold(what))

    def save(self, directory: Path, iteration: int) -> None:
        """Write the state after ``iteration``; with --async-save, ``finish_save`` completes it."""
        self._bootstrap()
        from slime_megatron.mcore.checkpoints import checkpoint

        self.finish_save(wait=True)
        with self._residence.at_least("everything"):
            if self._keeps_reference:
                _own_directory(directory / REFERENCE, self._rank)
                with self._snapshots.using(REFERENCE):
                    checkpoint.save_model(self._state, directory / REFERENCE)
            asynchronous = self._config.checkpoint.async_save
            self._pending_save = checkpoint.save(
                self._state, directory, iteration, asynchronous=asynchronous
            )

    def finish_save(self, wait: bool = True) -> bool:
        """Whether the checkpoint under way, if any, is complete on every rank."""
        self._bootstrap()
        if self._pending_save is None:
            return True
        if not self._pending_save.finish(wait=wait):
            return False
        self._pending_save = None
        return True

    def save_hf(self, directory: Path) -> None:
        """Write the weights as a Hugging Face checkpoint."""
        self._bootstrap()
        from slime_megatron.mcore.weights.export import save_hf

        with self._residence.at_least("weights"):
            save_hf(self._state, directory, source=Path(self._config.model.hf_checkpoint))

    def shutdown(self) -> None:
        """Finish what is being written and leave the process group."""
        self._bootstrap()
        from slime_megatron.mcore.startup import initialize

        self.finish_save(wait=True)
        initialize.shutdown()

    @contextmanager
    def _starting(self, what: str, seconds: dict[str, float], name: str) -> Generator[None]:
        """Time one step of the start; one rank tells of it for all."""
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start
        if self._rank == 0:
            model = "critic" if self._config.role == "critic" else "trainer"
            events.started(f"{model}: {what}", seconds[name])

    def _bootstrap(self) -> bool:
        """Import Megatron, on the CPU if there is no GPU; also once per calling thread."""
        from slime_megatron.mcore.startup import bootstrap

        seen = torch.cuda.is_available()
        if self._config.device == "cpu" and seen:
            raise RuntimeError(
                "--device cpu in a process that sees GPUs: set CUDA_VISIBLE_DEVICES= for it"
            )
        if self._config.device == "cuda" and not seen:
            raise ConfigError(no_gpu(f"trainer rank {self._rank}", torch.version.cuda))
        return bootstrap.load()

    def _build(self, device: torch.device, rendezvous: str | None) -> None:
        """Process groups, model with random weights, optimizer, schedule."""
        from slime_megatron.mcore import assembly
        from slime_megatron.mcore.residence import Residence
        from slime_megatron.mcore.startup import arguments, initialize
        from slime_megatron.mcore.weights.snapshots import Snapshots

        config, objective = self._config, self._objective
        args = arguments.parse(config.megatron.argv, self._rank, self._world_size)
        initialize.set_cpu_threads(device, self._world_size)
        initialize.initialize(args, device=device, rendezvous=rendezvous)
        self._hooks.after_init()
        self._state = assembly.build_state(
            config, args, device, value_head=objective.has_value_head
        )
        self._snapshots = Snapshots(self._state)
        self._residence = Residence(self._state)
        self._passes = assembly.passes_of(
            self._state, self._snapshots, config, objective, self._hooks
        )

    def _load_weights(self, load: Path | None) -> None:
        """Those of all policies; of a checkpoint the whole state."""
        from slime_megatron.mcore.first_weights import take_first_weights

        self._iteration = take_first_weights(
            self._state,
            self._snapshots,
            self._config,
            policies=self._objective.kept_policies,
            load=load,
        )

    def _needs(self, policy: str) -> bool:
        return policy in self._objective.kept_policies

    @property
    def _keeps_reference(self) -> bool:
        """Whether the reference changes in the course of a run."""
        return self._needs(REFERENCE) and bool(self._config.reference.ref_update_interval)


def _own_directory(directory: Path, rank: int) -> None:
    """Made by rank 0 before any rank writes into it."""
    if rank == 0:
        directory.mkdir()
    torch.distributed.barrier()


def _device(rank: int, *, on_cpu: bool) -> torch.device:
    """The only GPU this process sees, or the one whose turn it is."""
    if on_cpu:
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())
