"""Where a run's numbers are written: JSON lines always, TensorBoard unless switched off."""

import os
from pathlib import Path

from slime_core.config.tracking import TrackingConfig
from slime_core.interfaces import Tracker
from slime_core.tracking import Fanout, JsonlTracker

METRICS_FILE = "metrics.jsonl"


def open_trackers(config: TrackingConfig, directory: Path) -> Fanout:
    """Open the trackers of the run whose output directory is ``directory``."""
    trackers: list[Tracker] = [JsonlTracker(directory / METRICS_FILE)]
    if config.use_tensorboard:
        from slime_train.trackers.tensorboard import TensorBoardTracker  # takes a second

        trackers.append(TensorBoardTracker(tensorboard_directory(config, directory)))
    return Fanout(trackers)


def tensorboard_directory(config: TrackingConfig, directory: Path) -> Path:
    """``<project>/<experiment>`` if named, else ``$TENSORBOARD_DIR``, else the run's directory."""
    project = config.tb_project_name or os.environ.get("TENSORBOARD_DIR")
    if project is None:
        return directory / "tensorboard"
    return Path(project) / (config.tb_experiment_name or directory.name)
