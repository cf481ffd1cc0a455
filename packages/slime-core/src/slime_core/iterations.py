"""How long a run is."""

from slime_core.config.data import DataConfig
from slime_core.config.rollout import RolloutConfig
from slime_core.errors import ConfigError


def num_iterations(rollout: RolloutConfig, data: DataConfig, num_prompts: int) -> int:
    """``--num-rollout``, or as many as ``--num-epoch`` passes over the prompts take."""
    if rollout.num_rollout is not None:
        return rollout.num_rollout
    if data.num_epoch is None:
        raise ConfigError("give --num-rollout or --num-epoch")
    return max(1, data.num_epoch * num_prompts // rollout.rollout_batch_size)
