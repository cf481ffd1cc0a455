"""Weights & Biases: one run for one training, continued when that is resumed.

The package comes in as an argument: the core runs without it, and imports no framework.
"""

import logging
import os
import re
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_core.config.secrets import HIDDEN, without_secrets, words_without_secrets
from slime_core.config.tracking import TrackingConfig
from slime_core.errors import TrackingError
from slime_core.interfaces import Metrics

logger = logging.getLogger(__name__)

RUN_ID = ".wandb-run-id"
"""File in --save, or without it in the output directory, that names the run to continue."""

FINISH_S = 60.0
"""How long the end of a run waits for numbers that are still to be sent; they stay on disk."""

_PLAIN = (bool, int, float, str, type(None))


class WandbTracker:
    """Logs every metric over upstream's axes: ``train/step``, ``rollout/step``, ``eval/step``.

    ``train/step`` counts optimizer steps up to the iteration, the others iterations. They are
    metrics, because Weights & Biases drops rows whose own step goes back, as after a resume.

    Args:
        package: the module ``wandb``.
        config: the flags.
        directory: the run's output directory.
        values: the whole configuration by name; secrets in it are not passed on.

    Raises:
        TrackingError: Weights & Biases did not accept the run.
    """

    def __init__(
        self, package: Any, config: TrackingConfig, directory: Path, values: Mapping[str, Any]
    ) -> None:
        self._num_steps: int = values["num_steps_per_rollout"]
        self._one_axis = config.wandb_always_use_train_step
        self._run = _begin(package, config, directory, values)
        for axis, names in _AXES.items():
            self._run.define_metric(axis)
            for name in names:
                self._run.define_metric(name, step_metric=axis)

    def log(self, step: int, metrics: Metrics) -> None:
        """Send ``metrics`` of iteration ``step``; does not wait for the network."""
        trained = step * self._num_steps
        other = trained if self._one_axis else step
        axes = {"train/step": trained, "rollout/step": other, "eval/step": other}
        self._run.log({**metrics, **axes})

    def close(self) -> None:
        """Send what is left, for ``FINISH_S`` at most; a run that ends by an error has failed."""
        self._run.finish(exit_code=0 if sys.exception() is None else 1)


_AXES = {
    "rollout/step": ("*",),
    "train/step": ("train/*",),
    "eval/step": ("eval/*",),
}


def _begin(package: Any, config: TrackingConfig, directory: Path, values: Mapping[str, Any]) -> Any:
    folder = Path(config.wandb_dir or directory)
    run_id, kept = _run_id(config, Path(values.get("save") or directory))
    settings: dict[str, Any] = {
        "root_dir": str(folder),
        "mode": config.wandb_mode,
        "api_key": config.wandb_key,
        "base_url": config.wandb_host,
        "finish_timeout": FINISH_S,
        "console": "off",  # logs stay in the output directory
        "quiet": True,
    }
    offline = (config.wandb_mode or os.environ.get("WANDB_MODE")) == "offline"
    sys.argv[1:] = words_without_secrets(sys.argv[1:])  # are recorded
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run = package.init(
            project=config.wandb_project,
            entity=config.wandb_team,
            group=config.wandb_group,
            name=_name(config, directory, run_id),
            id=run_id,
            resume=None if offline else "allow",
            config=_plain(without_secrets(values)),
            settings=package.Settings(**{k: v for k, v in settings.items() if v is not None}),
        )
    except Exception as error:  # of the network, the account, its files
        raise TrackingError(_explained(error, config, kept)) from None  # its frames hold the key
    logger.info("Weights & Biases run %s %s", run_id, run.url or f"in {run.dir}")
    return run


def _run_id(config: TrackingConfig, directory: Path) -> tuple[str, Path | None]:
    """The run to begin or to continue, and the file that keeps it; made at the first start."""
    if config.wandb_run_id is not None:
        return config.wandb_run_id, None
    path = directory / RUN_ID
    try:
        if path.is_file() and (known := path.read_text(encoding="utf-8").strip()):
            return known, path
        directory.mkdir(parents=True, exist_ok=True)
        made = uuid.uuid4().hex[:8]
        path.write_text(f"{made}\n", encoding="utf-8")
    except OSError as error:
        raise TrackingError(
            f"--use-wandb: the run's id cannot be kept in {path}: {error}"
        ) from error
    return made, path


def _name(config: TrackingConfig, directory: Path, run_id: str) -> str:
    name = config.wandb_group or directory.name
    return f"{name}_{run_id}" if config.wandb_random_suffix else name


def _plain(value: Any) -> Any:
    """What can be written as JSON; anything else as text."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value)


def _explained(error: Exception, config: TrackingConfig, kept: Path | None) -> str:
    said = f"{type(error).__name__}: {error}"
    if config.wandb_key:
        said = re.sub(re.escape(config.wandb_key), HIDDEN, said)
    again = f"; if the run in question was deleted there, remove {kept}" if kept else ""
    return (
        f"--use-wandb: Weights & Biases did not accept the run: {said}. Log in with `wandb login` "
        "or WANDB_API_KEY, check --wandb-host, --wandb-team and --wandb-project, or write files to "
        f"send later with --wandb-mode offline{again}"
    )
