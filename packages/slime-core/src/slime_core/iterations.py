"""How long a run is."""

import logging

from slime_core.config.data import DataConfig
from slime_core.config.rollout import RolloutConfig
from slime_core.errors import ConfigError

logger = logging.getLogger(__name__)


def num_iterations(rollout: RolloutConfig, data: DataConfig, num_prompts: int) -> int:
    """``--num-rollout``, or as many as ``--num-epoch`` passes over the prompts take.

    Before a run starts, rows are counted and not looked into: where some of the ``num_prompts``
    that were counted then have been left out since, those that remain are passed over more often,
    and the log says so.
    """
    if rollout.num_rollout is not None:
        drawn = rollout.num_rollout * rollout.rollout_batch_size
        if num_prompts and data.num_epoch and drawn > data.num_epoch * num_prompts:
            logger.warning(
                "%d iterations of %d prompts pass over the %d prompts that there are %.2f times, "
                "not %d (--num-epoch), which counts rows that are left out as well; --num-rollout "
                "sets the number of iterations",
                rollout.num_rollout,
                rollout.rollout_batch_size,
                num_prompts,
                drawn / num_prompts,
                data.num_epoch,
            )
        return rollout.num_rollout
    if data.num_epoch is None:
        raise ConfigError("give --num-rollout or --num-epoch")
    return max(1, data.num_epoch * num_prompts // rollout.rollout_batch_size)
