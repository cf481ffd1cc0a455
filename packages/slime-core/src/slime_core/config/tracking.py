"""Where numbers go."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag

_NO_WANDB = "numbers go to TensorBoard and metrics.jsonl: leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Trackers and the metrics they get."""

    output_dir: str = flag(default="", ours=True)
    """Directory of this run's logs and metrics; outputs/<model>-<estimator>-<time> by default."""
    use_tensorboard: bool = flag(default=True, switch=True)
    """Write TensorBoard files into the output directory."""
    tb_project_name: str | None = None
    """TensorBoard files go to <project>/<experiment> instead; also TENSORBOARD_DIR."""
    tb_experiment_name: str | None = None
    """Second part of that path."""
    log_passrate: bool = False
    """Report pass@k for powers of two up to the number of responses per prompt."""
    log_multi_turn: bool = flag(
        default=False, planned="report them from the custom generate function's metadata"
    )
    """Report numbers of turns and lengths without observations."""
    log_reward_category: str | None = None
    """Count this entry of dictionary rewards by value."""
    log_correct_samples: bool = False
    """Report lengths of the responses with reward 1."""
    use_wandb: bool = flag(default=False, planned=_NO_WANDB)
    """Report to Weights & Biases."""
    wandb_mode: Literal["online", "offline", "disabled"] | None = flag(
        default=None, planned={"online": _NO_WANDB, "offline": _NO_WANDB}
    )
    """How Weights & Biases is reached."""
    wandb_dir: str | None = flag(default=None, planned=_NO_WANDB)
    """Directory of Weights & Biases files."""
    wandb_key: str | None = flag(default=None, planned=_NO_WANDB)
    """Key of the account."""
    wandb_host: str | None = flag(default=None, planned=_NO_WANDB)
    """Address of the server."""
    wandb_team: str | None = flag(default=None, planned=_NO_WANDB)
    """Entity."""
    wandb_group: str | None = flag(default=None, planned=_NO_WANDB)
    """Group of runs."""
    wandb_project: str | None = flag(default=None, planned=_NO_WANDB)
    """Project."""
    wandb_random_suffix: bool = flag(
        "--disable-wandb-random-suffix",
        default=True,
        negated="Do not add a random suffix to the run's name.",
        planned=_NO_WANDB,
    )
    """Add a random suffix to the run's name."""
    wandb_always_use_train_step: bool = flag(default=False, planned=_NO_WANDB)
    """One step axis for all metrics."""
    wandb_run_id: str | None = flag(default=None, planned=_NO_WANDB)
    """Run to continue."""
