"""Where a run's numbers are written: JSON lines always, TensorBoard and W&B where asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_core.config.tracking import TrackingConfig
from slime_core.interfaces import Tracker
from slime_core.reports.tracking import Fanout, JsonlTracker, tensorboard_directory
from slime_core.reports.wandb_tracker import WandbTracker

METRICS_FILE = "metrics.jsonl"


def open_trackers(config: TrackingConfig, directory: Path, values: Mapping[str, Any]) -> Fanout:
    """Open the trackers of the run of configuration ``values`` whose output is ``directory``."""
    trackers: list[Tracker] = [JsonlTracker(directory / METRICS_FILE)]
    if config.use_tensorboard:
        from slime_train.trackers.tensorboard import TensorBoardTracker  # takes a second

        trackers.append(TensorBoardTracker(tensorboard_directory(config, directory)))
    if config.use_wandb and config.wandb_mode != "disabled":
        import wandb  # optional

        trackers.append(WandbTracker(wandb, config, directory, values))
    return Fanout(trackers)
