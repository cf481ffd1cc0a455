"""One rank of the trainer: the model, its optimizer, and what the loop asks of them."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from slime_core.advantages.custom import custom_advantages
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.batch import BatchConfig
from slime_core.config.checkpoint import CheckpointConfig
from slime_core.config.model import ModelConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.config.reference import ReferenceConfig
from slime_core.config.sync import WeightSyncConfig
from slime_core.errors import CheckpointError
from slime_core.interfaces import Metrics, WeightReceiver
from slime_core.losses.functions import LossFunctions, custom_importance, custom_reducer
from slime_core.staging import TRACKER, latest

from slime_megatron.config import MegatronConfig
from slime_megatron.stages import LOG_PROBS, Objective, RankPayload, Report, train_iteration

if TYPE_CHECKING:
    from slime_megatron.mcore.model_passes import ModelPasses
    from slime_megatron.mcore.snapshots import Snapshots
    from slime_megatron.mcore.state import TrainState

__all__ = ["RankPayload", "TrainerConfig", "TrainerRank"]

logger = logging.getLogger(__name__)

_DEFAULT_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The sections a trainer rank reads; crosses processes."""

    megatron: MegatronConfig
    model: ModelConfig
    batch: BatchConfig
    advantage: AdvantageConfig
    policy_loss: PolicyLossConfig
    off_policy: OffPolicyConfig
    reference: ReferenceConfig
    checkpoint: CheckpointConfig
    sync: WeightSyncConfig
    temperature: float = 1.0
    """Of sampling: log-probabilities are those of the distribution that was sampled from."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    flat: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What user functions see as ``args``."""

    @property
    def objective(self) -> Objective:
        """What is optimised."""
        advantages = self.advantage.custom_advantage_function_path
        importance = self.off_policy.custom_tis_function_path
        reducer = self.policy_loss.custom_pg_loss_reducer_function_path
        return Objective(
            advantage=self.advantage,
            policy_loss=self.policy_loss,
            off_policy=self.off_policy,
            custom_advantages=custom_advantages(advantages, self.flat) if advantages else None,
            functions=LossFunctions(
                importance=custom_importance(importance, self.flat) if importance else None,
                reducer=custom_reducer(reducer, self.flat) if reducer else None,
            ),
        )


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
        self._rank = rank
        self._world_size = world_size
        self._receiver_factory = receiver_factory
        self._receiver: WeightReceiver | None = None
        self._pending_save: Any = None
        self._iteration = 0
        self._last_report = Report()
        self._state: TrainState
        self._snapshots: Snapshots
        self._passes: ModelPasses

    @property
    def iteration(self) -> int:
        """The first iteration to train: after the checkpoint that was loaded, else 0."""
        return self._iteration

    @property
    def steps(self) -> list[Mapping[str, float]]:
        """``train/*`` of every optimizer step of the last iteration, in order; on rank 0."""
        return [_step_metrics(step) for step in self._last_report.steps]

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
        start = time.perf_counter()
        on_cpu = self._bootstrap()
        seconds["import_s"] = time.perf_counter() - start
        start = time.perf_counter()
        self._build(_device(self._rank, on_cpu=on_cpu), rendezvous)
        seconds["build_s"] = time.perf_counter() - start
        start = time.perf_counter()
        self._load_weights(load)
        seconds["load_s"] = time.perf_counter() - start
        return seconds

    def train(self, iteration: int, payload: RankPayload) -> Metrics:
        """Take the optimizer steps of one iteration; metrics on rank 0, nothing elsewhere."""
        self._bootstrap()
        from slime_megatron.mcore.model_passes import REFERENCE, from_last_stage

        start = time.perf_counter()
        report = train_iteration(self._passes, payload, self._config.objective)
        report = from_last_stage(report)
        interval = self._config.reference.ref_update_interval
        if interval and self._config.objective.needs_reference and (iteration + 1) % interval == 0:
            self._snapshots.store(REFERENCE)
        if self._rank:
            return {}
        report.seconds["train"] = time.perf_counter() - start
        self._last_report = report
        return _metrics(report)

    def publish(self, version: int) -> Metrics:
        """Make the engines serve the current weights as ``version``; timings on rank 0."""
        self._bootstrap()
        from slime_megatron.publish import publish

        if self._rank == 0 and self._receiver is None:
            assert self._receiver_factory is not None, "rank 0 was given no receiver factory"
            self._receiver = self._receiver_factory()
        size = self._config.sync.update_weight_buffer_size
        return publish(self._state, self._receiver, version, size)

    def save(self, directory: Path, iteration: int) -> None:
        """Write the state after ``iteration``; with --async-save, ``finish_save`` completes it."""
        self._bootstrap()
        from slime_megatron.mcore import checkpoint

        self.finish_save(wait=True)
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
        from slime_megatron.mcore.export import save_hf

        save_hf(self._state, directory, source=Path(self._config.model.hf_checkpoint))

    def shutdown(self) -> None:
        """Finish what is being written and leave the process group."""
        self._bootstrap()
        from slime_megatron.mcore import initialize

        self.finish_save(wait=True)
        initialize.shutdown()

    def _bootstrap(self) -> bool:
        """Import Megatron, on the CPU if there is no GPU; also once per calling thread."""
        from slime_megatron.mcore import bootstrap

        if self._config.device == "cpu" and torch.cuda.is_available():
            raise RuntimeError(
                "--device cpu in a process that sees GPUs: set CUDA_VISIBLE_DEVICES= for it"
            )
        return bootstrap.load()

    def _build(self, device: torch.device, rendezvous: str | None) -> None:
        """Process groups, model with random weights, optimizer, schedule."""
        from slime_convert.families import find, read_config

        from slime_megatron.mcore import arguments, initialize, model, optimizer
        from slime_megatron.mcore.forward import ScoreConfig
        from slime_megatron.mcore.model_passes import ModelPasses
        from slime_megatron.mcore.snapshots import Snapshots
        from slime_megatron.mcore.state import TrainState

        config = self._config
        args = arguments.parse(config.megatron.argv, self._rank, self._world_size)
        if device.type == "cpu":
            initialize.set_cpu_threads(self._world_size)
        initialize.initialize(args, device=device, rendezvous=rendezvous)
        hf_config = read_config(Path(config.model.hf_checkpoint))
        family = find(hf_config)
        chunks = model.build(
            args,
            hf_config,
            family,
            only_train=config.model.only_train_params_name_list or (),
            frozen=config.model.freeze_params_name_list or (),
        )
        built, scheduler = optimizer.build(args, chunks)
        self._state = TrainState(
            args=args,
            chunks=chunks,
            optimizer=built,
            scheduler=scheduler,
            family=family,
            hf_config=hf_config,
            device=device,
        )
        self._snapshots = Snapshots(self._state)
        chunk = config.batch.log_probs_chunk_size
        self._passes = ModelPasses(
            self._state,
            self._snapshots,
            ScoreConfig(
                vocab_size=args.vocab_size,
                temperature=config.temperature,
                chunk_size=chunk if chunk > 0 else _DEFAULT_CHUNK,
            ),
            pad_multiple=config.batch.data_pad_size_multiplier,
        )

    def _load_weights(self, load: Path | None) -> None:
        """Put the reference aside, then take the policy's weights or the whole state."""
        from slime_megatron.mcore import checkpoint
        from slime_megatron.mcore.model_passes import REFERENCE

        source = self._initial_weights()
        if self._config.objective.needs_reference:
            self._load_model(self._reference_weights())
            self._snapshots.store(REFERENCE)
        if load is not None:
            self._iteration = checkpoint.load(self._state, load) + 1
        elif not self._config.objective.needs_reference or source != self._reference_weights():
            self._load_model(source)

    def _load_model(self, directory: Path) -> None:
        """Weights alone, of either kind."""
        from slime_megatron.mcore import checkpoint
        from slime_megatron.mcore.hf_load import load_hf

        state = self._state
        if _is_hugging_face(directory):
            load_hf(
                state.chunks, state.family, state.hf_config, directory, optimizer=state.optimizer
            )
        else:
            checkpoint.load_model(state, directory)
            state.optimizer.reload_model_params()

    def _initial_weights(self) -> Path:
        given = self._config.checkpoint.load
        if given is not None and _is_hugging_face(Path(given)):
            return Path(given)
        return Path(self._config.model.hf_checkpoint)

    def _reference_weights(self) -> Path:
        """--ref-load, a Hugging Face directory or a directory of checkpoints."""
        reference = self._config.reference
        directory = Path(reference.ref_load or self._config.model.hf_checkpoint)
        if _is_hugging_face(directory):
            return directory
        return _checkpoint_in(directory, reference.ref_ckpt_step)


def _device(rank: int, *, on_cpu: bool) -> torch.device:
    """The only GPU this process sees, or the one whose turn it is."""
    if on_cpu:
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())


def _is_hugging_face(directory: Path) -> bool:
    return (directory / "config.json").is_file()


def _checkpoint_in(directory: Path, step: int | None) -> Path:
    """The checkpoint of ``step``, by default the newest complete one."""
    found = latest(directory, step)
    if found is None:
        raise CheckpointError(
            f"--ref-load {directory} is neither a Hugging Face directory (no config.json) nor a "
            f"directory of checkpoints (no {TRACKER})"
        )
    return found


def _step_metrics(step: Any) -> dict[str, float]:
    """``train/*`` of one optimizer step."""
    metrics = {f"train/{name}": x for name, x in step.metrics.items() if name != LOG_PROBS}
    metrics["train/grad_norm"] = step.grad_norm
    metrics |= {f"train/lr-pg_{i}": lr for i, lr in enumerate(step.learning_rates)}
    return metrics | {"train/skipped_steps": float(not step.updated)}


def _metrics(report: Report) -> dict[str, float]:
    """One flat table for an iteration: means over its steps, batch means, timings."""
    steps = [_step_metrics(step) for step in report.steps]
    metrics = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    metrics["train/skipped_steps"] *= len(steps)
    metrics |= {f"rollout/{name}": x for name, x in report.rollout.items()}
    metrics |= {f"perf/{stage}_time": x for stage, x in report.seconds.items()}
    if report.seconds.get("actor_train"):
        metrics["perf/actor_train_tok_per_s"] = report.num_tokens / report.seconds["actor_train"]
    return metrics
