"""Continuing a schedule of learning rate and weight decay, or refusing one that would jump."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slime_core.errors import CheckpointError

from slime_megatron.mcore.checkpoints.identity import differing
from slime_megatron.mcore.optimizer.adam_state import group_pairs
from slime_megatron.mcore.state import TrainState

_FLAGS = {
    "max_lr": "--lr",
    "min_lr": "--min-lr",
    "lr_warmup_steps": "--lr-warmup-iters",
    "lr_decay_steps": "--lr-decay-iters (or the length of the run)",
    "lr_decay_style": "--lr-decay-style",
    "start_wd": "--start-weight-decay",
    "end_wd": "--weight-decay",
    "wd_incr_steps": "the length of the run",
    "wd_incr_style": "--weight-decay-incr-style",
}
_GROUP_KEYS = ("max_lr", "min_lr", "start_wd", "end_wd")
"""What parameter groups repeat of the schedule."""


def check(state: TrainState, saved: Mapping[str, Any], directory: Path) -> None:
    """Raise ``CheckpointError`` unless the command line asks for the checkpoint's schedule.

    Lengths do not matter to what is constant: a run with a constant learning rate may be made
    longer. Megatron's ``--override-opt-param-scheduler`` (take the command line's schedule) and
    ``--use-checkpoint-opt-param-scheduler`` (take the checkpoint's) decide the rest.
    """
    ours, theirs = state.scheduler.state_dict(), _continued(state, saved)
    different = differing(_by_flag(theirs), _by_flag(ours))
    decided = state.args.override_opt_param_scheduler or _follows_checkpoint(state)
    if different and not decided:
        raise CheckpointError(
            f"{directory} was trained under another schedule: {'; '.join(different)}. Give "
            "--override-opt-param-scheduler to continue under the command line's, or "
            "--use-checkpoint-opt-param-scheduler to keep the checkpoint's"
        )


def align_groups(state: TrainState, saved_optimizer: Mapping[Any, Any]) -> None:
    """Let saved parameter groups and ours agree on the schedule.

    Megatron finds the saved group of each of ours by values that include the learning rate's
    bounds, and would find none after a change of them.
    """
    for saved, ours in group_pairs(state.optimizer, saved_optimizer):
        source, target = (saved, ours) if _follows_checkpoint(state) else (ours, saved)
        target.update({key: source[key] for key in _GROUP_KEYS if key in source})


def load(state: TrainState, saved: Mapping[str, Any]) -> None:
    """Continue after as many samples as the checkpoint has seen."""
    state.scheduler.load_state_dict(_continued(state, saved))


def _by_flag(schedule: Mapping[str, Any]) -> dict[str, Any]:
    return {flag: schedule[name] for name, flag in _FLAGS.items()}


def _follows_checkpoint(state: TrainState) -> bool:
    return bool(state.args.use_checkpoint_opt_param_scheduler)


def _continued(state: TrainState, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The saved schedule with the lengths that nothing depends on as they are here."""
    ours = state.scheduler.state_dict()
    constant = {
        "lr_decay_steps": ours["lr_decay_style"] == "constant",
        "wd_incr_steps": ours["wd_incr_style"] == "constant",
    }
    return {**saved, **{name: ours[name] for name, holds in constant.items() if holds}}
