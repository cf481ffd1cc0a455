"""Corrections for samples that another policy drew."""

from slime_core.config.draft import Draft, Facts, spelled

_WEIGHTS = ("tis_level", "tis_mode", "custom_tis_function_path")
_APPLIED = ("tis_batch_normalize",)
"""What changes weights that are applied, and none that are only reported."""
_BOUNDS = ("tis_clip", "tis_clip_low")
_REJECTION = ("rs_level", "rs_lower_bound", "rs_upper_bound", "rs_veto_threshold")


def old_policy(draft: Draft, facts: Facts) -> None:
    """The ratio is taken against one policy."""
    if not draft["use_rollout_logprobs"]:
        return
    if draft["use_tis"]:
        draft.problem(
            "--use-rollout-logprobs makes the engines' log-probabilities the old policy, which "
            "leaves --use-tis nothing to correct: drop one"
        )
    if draft["use_decoupled_ppo"]:
        draft.problem(
            "--use-rollout-logprobs clips against the engines, --use-decoupled-ppo against the "
            "trainer's own policy: drop one"
        )


def bounds(draft: Draft, facts: Facts) -> None:
    """Rejection keeps what importance weights keep, unless told otherwise."""
    if draft["rs_lower_bound"] is None:
        draft.derive("rs_lower_bound", draft["tis_clip_low"], "--tis-clip-low")
    if draft["rs_upper_bound"] is None:
        draft.derive("rs_upper_bound", draft["tis_clip"], "--tis-clip")
    for low, high in (("tis_clip_low", "tis_clip"), ("rs_lower_bound", "rs_upper_bound")):
        if draft[low] >= draft[high]:
            draft.problem(
                f"{spelled(low)} {draft[low]} must be below {spelled(high)} {draft[high]}"
            )


def lower_bound(draft: Draft, facts: Facts) -> None:
    """A lower bound of the weights clips; truncation has none."""
    if draft["tis_clip_low"] == 0:
        return
    if not draft.given("tis_mode"):
        draft.derive("tis_mode", "clip", "--tis-clip-low")
    elif draft["tis_mode"] == "truncate":
        draft.problem(
            f"--tis-clip-low {draft['tis_clip_low']} has no effect with --tis-mode truncate, which "
            "has no lower bound: use --tis-mode clip or mask"
        )


def in_effect(draft: Draft, facts: Facts) -> None:
    """What shapes a correction needs that correction."""
    applied = draft["use_tis"] or draft["use_decoupled_ppo"]
    weighs = applied or draft["get_mismatch_metrics"]
    idle = [name for name in _WEIGHTS if draft.given(name) and not weighs]
    idle += [n for n in _APPLIED if draft.given(n) and not applied]
    idle += [n for n in _BOUNDS if draft.given(n) and not (weighs or draft["use_rs"])]
    if idle:
        without = "without importance weights: add --use-tis or --use-decoupled-ppo"
        draft.idle(idle, f"{spelled(*idle)} {without}, or leave it out")
    idle = [name for name in _REJECTION if draft.given(name) and not draft["use_rs"]]
    if idle:
        draft.idle(idle, f"{spelled(*idle)} without rejection: add --use-rs, or leave it out")
    if draft.given("opsm_delta") and not draft["use_opsm"]:
        without = "--opsm-delta without masking of sequences: add --use-opsm, or leave it out"
        draft.idle(["opsm_delta"], without)


def batch_normalization(draft: Draft, facts: Facts) -> None:
    """A mean over tokens or sequences; a geometric mean is neither."""
    if draft["tis_batch_normalize"] and draft["tis_level"] == "geometric":
        draft.problem(
            "--tis-batch-normalize is not defined for --tis-level geometric: use token or sequence"
        )


RULES = (old_policy, bounds, lower_bound, in_effect, batch_normalization)
