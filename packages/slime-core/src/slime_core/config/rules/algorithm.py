"""Advantages, losses, the reference policy."""

from slime_core.config.draft import Draft, Facts


def supervised(draft: Draft, facts: Facts) -> None:
    """Supervised fine-tuning has no advantages."""
    if draft["loss_type"] == "sft_loss":
        draft.derive("compute_advantages_and_returns", False, "--loss-type sft_loss")
        for name, flag in (("use_kl_loss", "--use-kl-loss"), ("use_tis", "--use-tis")):
            if draft[name]:
                draft.problem(f"{flag} belongs to policy_loss, not to --loss-type sft_loss")
    elif not draft["compute_advantages_and_returns"]:
        draft.problem(
            "--disable-compute-advantages-and-returns leaves --loss-type policy_loss without "
            "advantages: drop it, or give --loss-type sft_loss"
        )


def clips(draft: Draft, facts: Facts) -> None:
    """The upper clip is the lower one unless given."""
    if not draft.given("eps_clip_high"):
        draft.derive("eps_clip_high", draft["eps_clip"], "--eps-clip")
    if draft["advantage_estimator"] == "cispo" and draft["eps_clip"] < 1:
        draft.notice(
            f"cispo with --eps-clip {draft['eps_clip']} also clips ratios from below; "
            "the paper does not: give --eps-clip 1 or more"
        )


def groups(draft: Draft, facts: Facts) -> None:
    """A single response has no spread; REINFORCE++ whitens."""
    if draft["n_samples_per_prompt"] == 1:
        draft.derive("normalize_grpo_std", False, "one sample per prompt")
    name = draft["advantage_estimator"]
    if name.startswith("reinforce_plus_plus") and not draft["normalize_advantages"]:
        draft.problem(f"--advantage-estimator {name} needs --normalize-advantages")


def penalties(draft: Draft, facts: Facts) -> None:
    """One KL term at most, of a kind that has a gradient."""
    if draft["kl_coef"] and draft["kl_loss_coef"]:
        draft.problem(
            f"--kl-coef {draft['kl_coef']} (in the reward) and --kl-loss-coef "
            f"{draft['kl_loss_coef']} (in the loss) exclude each other: drop one"
        )
    if draft["kl_loss_coef"] and not draft["use_kl_loss"]:
        draft.notice("--kl-loss-coef has no effect without --use-kl-loss")
    weighs = draft["use_kl_loss"] and draft["kl_loss_coef"]
    if weighs and draft["kl_loss_type"] == "k1" and not draft["use_unbiased_kl"]:
        draft.notice(
            "--kl-loss-type k1 as a loss has a gradient of mean zero on samples of the policy; "
            "low_var_kl (k3) is what GRPO uses"
        )


def corrections(draft: Draft, facts: Facts) -> None:
    """Off-policy corrections that exclude or need each other."""
    if draft["use_rollout_logprobs"] and draft["use_tis"]:
        draft.problem(
            "--use-rollout-logprobs makes the engines' log-probabilities the old policy, which "
            "leaves --use-tis nothing to correct: drop one"
        )
    if draft["get_mismatch_metrics"] and draft["custom_tis_function_path"] is None:
        draft.problem("--get-mismatch-metrics needs --custom-tis-function-path")


def reference(draft: Draft, facts: Facts) -> None:
    """The reference starts as the model itself."""
    needed = draft["kl_coef"] or draft["use_kl_loss"]
    if not draft["ref_load"]:
        draft.derive("ref_load", draft["hf_checkpoint"], "--hf-checkpoint")
    elif not needed:
        draft.notice("--ref-load has no effect without --use-kl-loss or --kl-coef")
    if draft["ref_update_interval"] is not None and not needed:
        draft.notice("--ref-update-interval has no effect without --use-kl-loss or --kl-coef")


RULES = (supervised, clips, groups, penalties, corrections, reference)
