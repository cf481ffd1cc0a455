"""Which reward a run uses."""

from dataclasses import dataclass

from slime_core.config.flags import flag


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """How responses are scored."""

    rm_type: str | None = None
    """Built-in reward: math, deepscaler, dapo, f1, gpqa, remote_rm, zero ...; a row's metadata may
    name another. math unless a custom one is given, zero with --use-opd."""
    reward_key: str | None = None
    """Entry of a dictionary reward to train on."""
    eval_reward_key: str | None = None
    """Entry of a dictionary reward to report in evaluation; --reward-key by default."""
    group_rm: bool = False
    """Score the responses of one prompt in one call."""
    rm_url: str | None = None
    """Address of a reward server, for --rm-type remote_rm, or of a teacher, for --opd-type
    sglang."""
    custom_rm_path: str | None = None
    """Reward function: package.module.name, file.py:name or file.py."""
    custom_reward_post_process_path: str | None = None
    """Function (args, samples) that returns raw rewards and rewards to train on."""
    custom_convert_samples_to_train_data_path: str | None = flag(
        default=None, planned="samples become a batch in slime_core.collate: leave it out"
    )
    """Function (args, samples) that builds the training data."""
