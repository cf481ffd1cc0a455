"""The user's functions for what has been generated."""

from collections.abc import Callable
from dataclasses import dataclass

from slime_core.hooks.adapters import reward_post_process
from slime_core.hooks.batch_functions import Convert, custom_convert
from slime_core.hooks.contracts import RewardPostProcess
from slime_core.hooks.rollout_functions import log_function

from slime_train.run_config import RunConfig


@dataclass(frozen=True, slots=True)
class RolloutFunctions:
    """What becomes of finished groups, where the user says so."""

    post_process: RewardPostProcess | None
    convert: Convert | None
    log: Callable[..., bool] | None
    log_evaluation: Callable[..., bool] | None

    @classmethod
    def of(cls, config: RunConfig) -> "RolloutFunctions":
        """Load them."""
        flat, reward, rollout = config.flat, config.reward, config.rollout
        post_process = reward.custom_reward_post_process_path
        convert = reward.custom_convert_samples_to_train_data_path
        names = ("custom_rollout_log_function_path", "custom_eval_rollout_log_function_path")
        paths = [(name, getattr(rollout, name)) for name in names]
        log, log_evaluation = (log_function(*p, flat) if p[1] else None for p in paths)
        return cls(
            reward_post_process(post_process, flat) if post_process else None,
            custom_convert(convert, flat) if convert else None,
            log,
            log_evaluation,
        )
