"""What is read at the start and written on the way."""

from dataclasses import dataclass

from slime_core.config.flags import flag


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of the training state."""

    load: str | None = None
    """Directory of checkpoints to start from; a run that finds one in --save continues there."""
    save: str | None = None
    """Directory for checkpoints: weights, optimizer, random state, position in the data."""
    save_interval: int | None = flag(default=None, at_least=1)
    """Iterations between checkpoints; the last iteration is always saved, and the only one where
    this is not given. Without --save and --save-hf nothing is."""
    save_retain_newest: int | None = flag(default=None, at_least=1)
    """Keep this many of the newest checkpoints and their --save-hf; older ones are deleted."""
    save_retain_interval: int | None = flag(default=None, at_least=1)
    """Keep every checkpoint after a multiple of this many iterations, and of the others the newest
    alone, or as many as --save-retain-newest says."""
    save_hf: str | None = None
    """Directory for Hugging Face weights at each save; {rollout_id} in it is the iteration."""
    async_save: bool = False
    """Write checkpoints in the background."""
    no_save_optim: bool = False
    """Do not save the optimizer's state."""
    no_load_optim: bool = False
    """Do not load the optimizer's state: start with a fresh optimizer."""
    no_load_rng: bool = False
    """Do not load random states: start with those of --seed."""
    finetune: bool = False
    """Take only the weights from --load and start at iteration 0."""
    ckpt_step: int | None = flag(default=None, at_least=0)
    """Iteration to load; the newest by default."""

    @property
    def saves(self) -> bool:
        """Whether anything is written, after the last iteration at least."""
        return self.save is not None or self.save_hf is not None
