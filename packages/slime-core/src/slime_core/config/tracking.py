"""Where numbers go."""

from dataclasses import dataclass
from typing import Literal

from slime_core.config.flags import flag


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
    use_wandb: bool = False
    """Report to Weights & Biases, too; needs the package wandb."""
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    """Send, write files for `wandb sync`, or do nothing; WANDB_MODE or online by default."""
    wandb_dir: str | None = None
    """Directory of Weights & Biases' files; the output directory by default."""
    wandb_key: str | None = flag(default=None, secret=True)
    """Key of the account; WANDB_API_KEY, which no list of processes shows, by default."""
    wandb_host: str | None = None
    """Address of the server, https://api.wandb.ai by default."""
    wandb_team: str | None = None
    """Team or user (entity) whose project it is."""
    wandb_group: str | None = None
    """Group of the run, and the beginning of its name; the output directory's name by default."""
    wandb_project: str | None = None
    """Project."""
    wandb_random_suffix: bool = flag(
        "--disable-wandb-random-suffix",
        default=True,
        negated="Do not add the run's id to its name.",
    )
    """Add the run's id to its name."""
    wandb_always_use_train_step: bool = False
    """Count optimizer steps, not iterations, on the axes rollout/step and eval/step as well."""
    wandb_run_id: str | None = None
    """Run to begin or to continue, instead of the one kept in --save or --output-dir."""
