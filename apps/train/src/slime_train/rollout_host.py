"""The generating side of a run: groups in, one training payload per data-parallel rank out."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_core.batch import TrainBatch
from slime_core.collate import age_metrics, collate
from slime_core.config.algorithm import OFFLINE_LOSSES, PAIR_LOSSES
from slime_core.data.dump import write_dump, write_evaluation
from slime_core.data.finished import FinishedRollouts
from slime_core.hooks.too_few_rollouts import require_a_step
from slime_core.interfaces import Metrics
from slime_core.plugins.forms import functions_of_samples
from slime_core.plugins.mistakes import blamed_on
from slime_core.reports import metrics as statistics
from slime_core.reports.progress import Progress
from slime_core.reports.time_ledger import TimeLedger
from slime_core.schedule.flops import model_cost
from slime_core.schedule.plan import StepPlan, plan
from slime_core.types import SampleGroup, samples_of
from slime_megatron.iteration.stages import RankPayload
from slime_sglang.server.launcher import NO_LAUNCHERS, Launchers
from slime_sglang.weights.session import EngineTarget

from slime_train.producers.interface import Producer
from slime_train.producers.select import make_producer
from slime_train.rollout_functions import RolloutFunctions
from slime_train.run_config import RunConfig


class RolloutHost:
    """Lives in the rollout worker's process."""

    def __init__(
        self, config: RunConfig, directory: Path, launchers: Launchers = NO_LAUNCHERS
    ) -> None:
        self._config = config
        self._producer: Producer = make_producer(config, directory, launchers)
        self._functions = RolloutFunctions.of(config)
        self._makers = functions_of_samples(config.flat)
        self._finished = FinishedRollouts(self._makers)
        self._clock = TimeLedger("engines")
        self._first: int | None = None

    @property
    def progress(self) -> Progress | None:
        """How far the call under way has come."""
        return self._producer.progress

    def start(self, load: Path | None) -> tuple[int, Sequence[EngineTarget]]:
        """Start the engines, continue where the checkpoint ``load`` was; prompts and engines."""
        replays = self._config.debug.load_debug_rollout_data is not None
        if load is not None and not (replays or self._config.checkpoint.finetune):
            self._producer.load_state_dict(self._finished.load(load))
        return len(self._producer), self._producer.start()

    def generate(self, iteration: int) -> tuple[list[RankPayload], Metrics]:
        """The groups of one iteration, cut up for the trainer's ranks."""
        ahead = self._config.rollout.async_buffer_size or 0
        self._finished.drop(through=iteration - ahead - 2)
        saves = ahead > 0 and self._config.checkpoint.save is not None  # while this goes on
        position = self._producer.state_dict if saves else None
        begin = time.monotonic()
        with self._clock.spending("generate"), blamed_on(self._makers):
            groups, metrics = self._finished.make(iteration, position, self._producer.produce)
        seconds = time.monotonic() - begin
        metrics = {**metrics, **self._clock.shares()}
        template = self._config.debug.save_debug_rollout_data
        if template is not None:
            write_dump(template, iteration, groups, self._makers)
        version = self._newest(iteration)
        with blamed_on(self._makers):
            batch = self._collate(groups, version)
            batch.require_vocabulary(self._config.hf_config.get("vocab_size"))
        require_a_step(batch, self._config.flat)
        steps = plan(
            batch,
            self._config.megatron.layout,
            self._config.batch,
            whole_rollouts=self._config.policy_loss.loss_type in PAIR_LOSSES,
            cost=model_cost(self._config.hf_config),
        )
        described = self._describe(groups, batch, steps, seconds)
        metrics |= age_metrics(
            samples_of(groups),
            version=version,
            max_token_staleness=self._config.off_policy.max_token_staleness,
            num_wasted=metrics.get("rollout/num_wasted_tokens"),
        )
        ranks = range(self._config.megatron.layout.dp)
        payloads = [RankPayload.of_rank(rank, batch, steps) for rank in ranks]
        log = self._functions.log
        if log is not None and log(iteration, samples_of(groups), dict(metrics), seconds):
            return payloads, {}
        return payloads, {**described, **metrics}

    def _collate(self, groups: Sequence[SampleGroup], version: int) -> TrainBatch:
        if self._functions.convert is not None:
            return self._functions.convert(groups)
        return collate(
            groups,
            reward_key=self._config.reward.reward_key,
            advantage=self._config.advantage,
            post_process=self._functions.post_process,
            shaping=self._config.shaping,
            max_response_len=self._config.sampling.rollout_max_response_len,
            version=version,
            max_token_staleness=self._config.off_policy.max_token_staleness,
        )

    def _newest(self, iteration: int) -> int:
        """The last weights that were published before an iteration: see ``loop.train``."""
        if self._first is None:
            self._first = iteration
        every = self._config.sync.update_weights_interval
        return max(self._first, iteration - iteration % every)

    def evaluate(self, version: int) -> Metrics:
        """Scores of the evaluation sets."""
        with self._clock.spending("evaluate"):
            found, log = self._producer.evaluate(version), self._functions.log_evaluation
        if (template := self._config.debug.save_debug_rollout_data) is not None and found.data:
            write_evaluation(template, version, found.data, self._makers)
        if log is not None and log(version, found.data, dict(found.metrics)):
            return {}
        return found.metrics

    def published(self, version: int) -> None:
        """Hear which weights the engines serve."""
        self._producer.published(version)

    def fleet(self, verb: str, *args: Any) -> Any:
        """What ``slime_sglang.fleet.readmission.Fleet`` asks of the engines; quick, thread-safe."""
        return getattr(self._producer.fleet, verb)(*args)

    def save(self, directory: Path, iteration: int) -> None:
        """Write what is left to do after ``iteration`` into ``directory``.

        May be called while a rollout is generated.
        """
        self._finished.save(directory, iteration, self._producer.state_dict)

    def stop(self) -> None:
        """End the engines."""
        self._producer.stop()

    def _describe(
        self, groups: Sequence[SampleGroup], batch: TrainBatch, steps: StepPlan, seconds: float
    ) -> Metrics:
        """Statistics of the samples; rewards are logged here, where they are made."""
        config, samples = self._config, samples_of(groups)
        judged = config.policy_loss.loss_type not in OFFLINE_LOSSES
        key = config.reward.reward_key
        described = {
            **statistics.rollout_metrics(samples, config.tracking, reward_key=key, judged=judged),
            **({"rewards": float(batch.rewards.mean())} if judged else {}),
            "num_samples": float(batch.num_samples),
            "num_dropped_samples": float(steps.num_dropped),
        }
        engines = max(1, config.cluster.rollout_num_gpus or config.cluster.rollout_num_engines or 1)
        speed = statistics.throughput(samples, seconds, num_gpus=engines)
        return statistics.merge(
            [("rollout/", described), ("perf/", {"rollout_time": seconds, **speed})]
        )
