"""One run, from a checked configuration to its last checkpoint."""

import logging
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from slime_core.checkpoints.resume import Resume
from slime_core.files.save_lock import sole_writer
from slime_core.interfaces import Beginning, Metrics
from slime_core.plugins.mistakes import told
from slime_core.processes.events import FILE_NAME, Events
from slime_core.processes.heartbeat import Watch
from slime_core.processes.logs import output_directory
from slime_core.processes.restarts import Restarts
from slime_core.processes.sentinel import owned_processes, sigterm_interrupts
from slime_core.reports.run_record import RunRecord
from slime_core.reports.run_summary import finished, stopped
from slime_core.reports.skipped_steps import SkippedSteps
from slime_core.reports.start_lines import StartLines

from slime_train.compose import Composition, Screen, compose
from slime_train.console import Console
from slime_train.loop import Cadence, train
from slime_train.run_config import RunConfig
from slime_train.runtime.cluster import cluster
from slime_train.trackers import open_trackers

logger = logging.getLogger(__name__)


def run(config: RunConfig, record: RunRecord) -> int:
    """Train; return the exit code. Every process of the run has ended when this returns."""
    directory = output_directory(config.tracking.output_dir)
    try:
        with sigterm_interrupts():
            record.write(directory)
            _run(config, directory)
    except Exception as error:
        logger.exception("the run failed")
        sys.stderr.write(f"\nslime-train: {told(error)}\nlogs: {directory / 'logs'}\n")
        return 1
    except KeyboardInterrupt as end:
        return stopped(end, directory, config.checkpoint.save)
    return 0


@contextmanager
def _composed(
    config: RunConfig, directory: Path, screen: Screen, resume: Resume
) -> Generator[Composition]:
    """A started job; after the block it ends in order, after an error at once."""
    lines = StartLines(directory / FILE_NAME, screen.say)
    watch = Watch(directory, config.health.heartbeat_timeout_s)
    screen = replace(screen, on_wait=lines.after(watch.check))
    models = [config] if config.of_critic is None else [config, config.of_critic]
    num_ranks = sum(model.megatron.layout.world_size for model in models)
    with owned_processes(), cluster(num_ranks + 1), watch.blaming():
        lines.done("Ray up")
        composition = compose(config, directory, screen, resume)
        lines.ready(f"iterations to go: {composition.cadence.last - composition.cadence.first}")
        yield composition
        composition.close()


def _run(config: RunConfig, directory: Path) -> None:
    health, events, started = config.health, Events(directory / FILE_NAME), time.monotonic()
    events.process("driver", "driver")
    with ExitStack() as stack:
        skipped = SkippedSteps(config.batch.num_steps_per_rollout)
        console = stack.enter_context(Console())
        stack.enter_context(sole_writer(config.checkpoint.save))
        tracker = open_trackers(config.tracking, directory, config.flat)
        stack.callback(tracker.close)

        def log(step: int, metrics: Metrics) -> None:
            tracker.log(step, metrics)
            console.log(step, metrics)
            skipped.log(metrics)

        def say(text: str) -> None:
            logger.info("%s", text)
            console.say(text)

        say(f"output directory: {directory}")
        limit = health.max_restarts if health.use_fault_tolerance else None
        resume = Resume(config.checkpoint, config.data.start_rollout_id, say)
        if resume.is_over(config.rollout.num_rollout, config.evaluation):
            return
        restarts = Restarts(limit, config.checkpoint.save, events, say)

        def attempt() -> Cadence:
            screen = Screen(say=say, progress=console.progress, log=log)
            with _composed(config, directory, screen, resume) as composition:
                cadence = composition.cadence
                restarts.ready()
                console.begin(cadence)
                tracker.begin(
                    Beginning(cadence.first, resume.origin.own, cadence.eval_before_training, say)
                )
                train(composition.job, cadence)
            return cadence

        made, seconds = restarts.run(attempt), time.monotonic() - started
        skipped.check()
        last = made.first if config.debug.debug_rollout_only else made.last  # nothing was trained
        say(finished(directory, seconds, config.checkpoint, range(made.first, last)))
