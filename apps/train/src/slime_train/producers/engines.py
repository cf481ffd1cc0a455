"""Reinforcement learning: SGLang engines answer the prompts, a reward scores the answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slime_core.data.buffer import oldest_first
from slime_core.data.chat import Tokenizer
from slime_core.data.prompts import prompt_rows
from slime_core.data.user_source import AnySource, open_source
from slime_core.hooks import adapters as hooks
from slime_core.hooks.contracts import SampleHook
from slime_core.hooks.rollout_functions import (
    EvalResult,
    Evaluation,
    Rollout,
    eval_function,
    eval_metrics,
    rollout_function,
)
from slime_core.interfaces import Metrics
from slime_core.processes.event_loop import EventLoop
from slime_core.processes.events import FILE_NAME, Events
from slime_core.reports.progress import Progress
from slime_core.types import SampleGroup
from slime_rewards.select import make_reward
from slime_sglang.agents.settings import AgentSettings
from slime_sglang.answers.sampling_params import Sampling
from slime_sglang.context_length import PromptRooms
from slime_sglang.fleet.engines import Engines
from slime_sglang.fleet.health import HealthSpec
from slime_sglang.fleet.spec import FleetSpec
from slime_sglang.rollout.collecting import Collected, CollectSpec, collect
from slime_sglang.rollout.evaluate import EvalSet, evaluate
from slime_sglang.rollout.flight import Flight, InTime, begin_again
from slime_sglang.rollout.generation import Generation, GenerationSpec
from slime_sglang.rollout.groups import Greedy, GroupWorker
from slime_sglang.rollout.teacher import Teacher
from slime_sglang.server.launcher import Launchers
from slime_sglang.weights.session import EngineTarget

from slime_train.run_config import RunConfig


class EngineProducer:
    """Owns prompts, engines, rewards and the event loop that they meet in."""

    def __init__(
        self, config: RunConfig, tokenizer: Tokenizer, directory: Path, launchers: Launchers
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self.progress: Progress | None = None
        hf, rollout, evaluation = config.hf_config, config.rollout, config.evaluation
        rooms = PromptRooms.of(hf, config.sglang, rollout, evaluation)
        self._stream = _stream(config, tokenizer, rooms)
        sets = [(each, rooms.of_evaluation(each)) for each in evaluation.eval_datasets]
        self._sets = [EvalSet.read(each, config.data, tokenizer, room) for each, room in sets]
        self._reward = make_reward(config.reward, config.flat)
        process = rollout.rollout_all_samples_process_path
        self._keep = _optional(hooks.dynamic_filter, rollout.dynamic_sampling_filter_path, config)
        self._filter = _optional(hooks.sample_filter, rollout.rollout_sample_filter_path, config)
        self._process = _optional(hooks.samples_process, process, config)
        record, health = Events(directory / FILE_NAME).record, HealthSpec.of(config.health)
        spec, teacher = _fleet(config, directory), None
        self.fleet = Engines(spec, health, record, launchers)
        taught = config.distillation.opd_type == "sglang" and not config.reward.rm_url
        if taught and (model := config.distillation.opd_teacher_load) is not None:
            teacher = Engines(spec.of_teacher(Path(model)), health, record, launchers)
        self._teacher_engines = teacher
        self._fleets = [self.fleet] if teacher is None else [self.fleet, teacher]
        self._teacher: Teacher | None = None
        self._loop = EventLoop("generation")
        self._flight = Flight()
        self._generation: Generation | None = None
        self._rollout: Rollout | None = None
        self._evaluation: Evaluation | None = None

    def __len__(self) -> int:
        return len(self._stream)

    def start(self) -> Sequence[EngineTarget]:
        """Start the engines and the router; weights are still those of ``--hf-checkpoint``."""
        for fleet in self._fleets:
            fleet.start()
        self._reward.connect(self.fleet.router_url)
        generation = Generation(
            _generation(self._config, self.fleet),
            self._tokenizer,
            self._check_alive,
            self.fleet if self._config.health.use_fault_tolerance else None,
        )
        self._generation = self._loop.run(generation.__aenter__())
        flat = _flat(self._config, self.fleet)
        rollout = self._config.rollout.rollout_function_path
        evaluation = self._config.evaluation.eval_function_path
        self._rollout = rollout_function(rollout, flat) if rollout else None
        self._evaluation = eval_function(evaluation, flat) if evaluation else None
        if self._config.distillation.opd_type == "sglang":
            started = self._teacher_engines
            if started is None:
                self._teacher = Teacher(str(self._config.reward.rm_url))
            else:
                self._teacher = Teacher(started.router_url, may_recover=started.may_recover)
        return self.fleet.targets

    def produce(self, iteration: int) -> tuple[Sequence[SampleGroup], Metrics]:
        """Generate until enough groups pass the filter."""
        if self._rollout is not None:
            made = self._rollout(iteration, self._stream)
            self._forgive()
            return made
        collected: Collected = self._loop.run(self._collect(iteration))
        lists = [list(group.samples) for group in collected.groups]
        if self._filter is not None:
            self._filter(lists)
        if self._process is not None:
            self._process([list(group.samples) for group in collected.every_group], self._stream)
        self._forgive()
        return collected.groups, collected.metrics | self._reward.metrics("rollout/")

    def evaluate(self, version: int) -> EvalResult:
        """Answer and score every evaluation set."""
        if self._evaluation is not None:
            data, metrics = self._evaluation(version, self._stream)
            return EvalResult(data, eval_metrics(data) | metrics)
        generation = self._started()
        worker = GroupWorker(generation, self._reward, hooks=_sample_hooks(self._config))
        show = self._shower(f"evaluating v{version}")
        done = evaluate(self._sets, worker, generation, iteration=version, show=show)
        try:
            found = self._loop.run(done)
            return EvalResult(found.data, found.metrics | self._reward.metrics("eval/grading/"))
        finally:
            self.progress = None

    def published(self, version: int) -> None:
        """Requests sent from now on are answered by these weights, or later ones."""
        self._started().version = version

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream, with unfinished groups and those that are being written."""
        return {**self._stream.state_dict(), **self._flight.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue there."""
        self._stream.load_state_dict(state)
        begin_again(self._stream, state)

    def stop(self) -> None:
        """End engines, router and reward processes."""
        self._loop.run(self._flight.cancel())
        if self._generation is not None:
            self._loop.run(self._generation.__aexit__(None, None, None))
            self._generation = None
        if self._teacher is not None:
            self._loop.run(self._teacher.close())
        self._loop.close()
        self._stream.close()
        self._reward.close()
        for fleet in self._fleets:
            fleet.stop()

    async def _collect(self, iteration: int) -> Collected:
        config, rollout = self._config, self._config.rollout
        generation = self._started()
        generation.begin(iteration)
        worker = GroupWorker(
            generation,
            self._reward,
            hooks=_sample_hooks(config),
            greedy=_greedy(config, generation),
            teach=self._teacher,
        )
        spec = CollectSpec(
            iteration=iteration,
            num_groups=rollout.rollout_batch_size,
            num_groups_at_once=rollout.over_sampling_batch_size or rollout.rollout_batch_size,
            partial_rollout=rollout.partial_rollout,
            in_time=InTime.of(rollout, config.sync, config.off_policy, lambda: generation.version),
            keep=self._keep,
            max_batches=rollout.dynamic_sampling_max_batches,
            show=self._shower(f"generating {iteration}"),
        )
        try:
            return await collect(self._stream, worker, generation, spec, self._flight)
        finally:
            self.progress = None

    def _forgive(self) -> None:
        """A rollout is finished: losses so far did not keep the run from getting on."""
        for fleet in self._fleets:
            fleet.progress()

    def _check_alive(self) -> None:
        for fleet in self._fleets:
            fleet.check_alive()

    def _shower(self, what: str) -> Callable[[int, int, Mapping[str, float]], None]:
        def show(done: int, total: int, statistics: Mapping[str, float]) -> None:
            note = ", ".join(f"{name} {value:.2f}" for name, value in statistics.items())
            self.progress = Progress(what, done, total, note)

        return show

    def _started(self) -> Generation:
        assert self._generation is not None, "start() comes first"
        return self._generation


def _optional[T](
    load: Callable[[str, Mapping[str, Any]], T], path: str | None, config: RunConfig
) -> T | None:
    return None if path is None else load(path, config.flat)


def _sample_hooks(config: RunConfig) -> list[SampleHook]:
    paths = config.rollout.rollout_sample_hook_path
    return [hooks.sample_hook(path, config.flat) for path in paths]


def _stream(config: RunConfig, tokenizer: Tokenizer, rooms: PromptRooms) -> AnySource:
    data, path = config.data, config.rollout.buffer_filter_path
    room = rooms.of_training(config.sampling, data)
    return open_source(
        prompt_rows(data, tokenizer, max_prompt_len=data.rollout_max_prompt_len, room=room),
        data,
        config.rollout.n_samples_per_prompt,
        select=oldest_first if path is None else hooks.buffer_filter(path, config.flat),
        flat=config.flat,
    )


def _fleet(config: RunConfig, directory: Path) -> FleetSpec:
    fleet = FleetSpec.resolve(
        config.cluster,
        config.sglang,
        config.machines,
        model_path=Path(config.model.hf_checkpoint),
        log_dir=directory / "logs",
        seed=config.data.rollout_seed,
    )
    return replace(fleet, external=config.rollout.rollout_external_engine_addrs or ())


def _greedy(config: RunConfig, generation: Generation) -> Greedy | None:
    """The answer that remax compares the others with."""
    if config.advantage.advantage_estimator != "remax":
        return None
    return Greedy(generation.greedy, config.reward.reward_key)


def _generation(config: RunConfig, engines: Engines) -> GenerationSpec:
    return GenerationSpec(
        router_url=engines.router_url,
        engine_urls=engines.urls,
        sampling=Sampling.of_rollout(config.sampling),
        concurrency=config.sglang.sglang_server_concurrency * len(engines.urls),
        seed=config.data.rollout_seed,
        timeout_s=config.sglang.sglang_router_request_timeout_secs,
        mask_earlier_weights=config.rollout.mask_offpolicy_in_partial_rollout,
        custom_generate=config.rollout.custom_generate_function_path,
        custom_timeout_s=config.rollout.custom_generate_timeout_s,
        flat=_flat(config, engines),
        weight_update_mode=config.sync.weight_update_mode,
        agents=AgentSettings.of(config.rollout, config.sglang, config.data),
    )


def _flat(config: RunConfig, engines: Engines) -> dict[str, Any]:
    """What user functions see as ``args``, with the router where upstream's look for it."""
    parts = urlsplit(engines.router_url)
    address = {"sglang_router_ip": parts.hostname, "sglang_router_port": parts.port}
    return {**config.flat, **address}
