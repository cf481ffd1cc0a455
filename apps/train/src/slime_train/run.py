"""One run, from a checked configuration to its last checkpoint."""

import logging
import signal
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from slime_core.errors import SlimeError
from slime_core.interfaces import Metrics
from slime_core.sentinel import owned_processes

from slime_train.compose import Screen, compose
from slime_train.console import Console
from slime_train.logs import log_to_file
from slime_train.loop import train
from slime_train.run_config import RunConfig
from slime_train.runtime.cluster import cluster
from slime_train.trackers import open_trackers

logger = logging.getLogger(__name__)


def run(config: RunConfig) -> int:
    """Train; return the exit code. Every process of the run has ended when this returns."""
    directory = Path(config.tracking.output_dir).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    log_to_file(directory / "logs" / "driver.log")
    try:
        with _signals_raise():
            _run(config, directory)
    except SlimeError as error:
        logger.exception("the run failed")
        sys.stderr.write(f"\nslime-train: {error}\nlogs: {directory / 'logs'}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"\nslime-train: interrupted; logs: {directory / 'logs'}\n")
        return 130
    return 0


def _run(config: RunConfig, directory: Path) -> None:
    begin = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(owned_processes())
        console = stack.enter_context(Console())
        tracker = open_trackers(config.tracking, directory)
        stack.callback(tracker.close)

        def log(step: int, metrics: Metrics) -> None:
            tracker.log(step, metrics)
            console.log(step, metrics)

        models = [config] if config.of_critic is None else [config, config.of_critic]
        num_ranks = sum(model.megatron.layout.world_size for model in models)
        stack.enter_context(cluster(num_ranks + 1))
        screen = Screen(say=console.say, progress=console.progress, log=log)
        composition = compose(config, directory, screen)
        console.say(f"ready after {time.monotonic() - begin:.1f} s")
        console.begin(composition.cadence)
        train(composition.job, composition.cadence)
        composition.close()


@contextmanager
def _signals_raise() -> Generator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that what was started is ended."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
