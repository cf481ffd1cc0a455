"""Learning from given responses: what belongs to generation has nothing to do."""

from slime_core.config.algorithm import OFFLINE_LOSSES, PAIR_LOSSES
from slime_core.config.draft import Draft, Facts, spelled

_NEVER_CALLED = (
    "rollout_function_path",
    "custom_generate_function_path",
    "custom_rm_path",
    "dynamic_sampling_filter_path",
    "rollout_sample_hook_path",
    "rollout_sample_filter_path",
    "rollout_all_samples_process_path",
    "buffer_filter_path",
    "data_source_path",
)
_NO_EFFECT = (
    "advantage_estimator",
    "rm_type",
    "rollout_temperature",
    "rollout_top_p",
    "rollout_top_k",
    "rollout_stop",
    "rollout_stop_token_ids",
    "rollout_max_prompt_len",
    "over_sampling_batch_size",
    "partial_rollout",
    "buffer_key",
    "max_staleness",
    "max_token_staleness",
)


def generates_nothing(draft: Draft, facts: Facts) -> None:
    """Functions that would not be called are refused, numbers that nothing reads are told."""
    kind = draft["loss_type"]
    if kind not in OFFLINE_LOSSES:
        return
    if names := [name for name in _NEVER_CALLED if draft[name]]:
        draft.problem(
            f"{spelled(*names)} with --loss-type {kind}: rows of --prompt-data are learnt as they "
            "are, nothing is generated, and no such function is called; leave it out"
        )
    if names := [name for name in _NO_EFFECT if draft.given(name)]:
        draft.notice(
            f"{spelled(*names)} without effect: --loss-type {kind} learns from the rows of "
            "--prompt-data and generates nothing"
        )


def columns_of_pairs(draft: Draft, facts: Facts) -> None:
    """Only preferences have a chosen and a rejected response."""
    names = [name for name in ("chosen_key", "rejected_key") if draft.given(name)]
    if names and draft["loss_type"] not in PAIR_LOSSES:
        draft.problem(
            f"{spelled(*names)} without --loss-type {' or '.join(PAIR_LOSSES)}: add it, or drop "
            "them"
        )


RULES = (generates_nothing, columns_of_pairs)
