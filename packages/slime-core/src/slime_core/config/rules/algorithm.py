"""Advantages, losses, the reference policy."""

from slime_core.config.draft import Draft, Facts


_OFFLINE = ("sft_loss", "dpo_loss", "rm_loss")
"""Loss types that learn from given responses: nothing is sampled, nothing is estimated."""

_SURROGATES = {"gspo": "gspo", "cispo": "cispo"}
"""Estimators that come with a surrogate of their own."""


def offline(draft: Draft, facts: Facts) -> None:
    """Learning from given responses has no advantages."""
    kind = draft["loss_type"]
    if kind in _OFFLINE:
        draft.derive("compute_advantages_and_returns", False, f"--loss-type {kind}")
        belongs = {"use_kl_loss": "--use-kl-loss", "use_tis": "--use-tis", "use_opd": "--use-opd"}
        for name, flag in belongs.items():
            if draft[name]:
                draft.problem(f"{flag} belongs to policy_loss, not to --loss-type {kind}")
    elif kind == "policy_loss" and not draft["compute_advantages_and_returns"]:
        draft.problem(
            "--disable-compute-advantages-and-returns leaves --loss-type policy_loss without "
            "advantages: drop it, or give another --loss-type"
        )


def custom_loss(draft: Draft, facts: Facts) -> None:
    """A custom loss has a function, and a function has a loss to be."""
    path, kind = draft["custom_loss_function_path"], draft["loss_type"]
    if kind == "custom_loss" and path is None:
        draft.problem("--loss-type custom_loss needs --custom-loss-function-path")
    if kind != "custom_loss" and path is not None:
        draft.problem(
            f"--custom-loss-function-path {path} has no effect with --loss-type {kind}: add "
            "--loss-type custom_loss, or drop it"
        )


def aggregation(draft: Draft, facts: Facts) -> None:
    """--calculate-per-token-loss is upstream's word for a mean over tokens."""
    if draft["calculate_per_token_loss"]:
        if draft.given("loss_aggregation") and draft["loss_aggregation"] != "token":
            draft.problem(
                f"--calculate-per-token-loss contradicts --loss-aggregation "
                f"{draft['loss_aggregation']}: drop one"
            )
        draft.derive("loss_aggregation", "token", "--calculate-per-token-loss")
    constant = draft["loss_aggregation"] == "constant"
    if constant and draft["loss_aggregation_constant"] is None:
        length = float(draft["rollout_max_response_len"])
        draft.derive("loss_aggregation_constant", length, "--rollout-max-response-len")
    if not constant and draft["loss_aggregation_constant"] is not None:
        draft.problem("--loss-aggregation-constant needs --loss-aggregation constant")


def clips(draft: Draft, facts: Facts) -> None:
    """The surrogate follows the estimator, the upper clip the lower one, unless given."""
    name = draft["advantage_estimator"]
    if not draft.given("policy_surrogate"):
        wanted = _SURROGATES.get(name, "clip")
        draft.derive("policy_surrogate", wanted, f"--advantage-estimator {name}")
    if not draft.given("eps_clip_high"):
        draft.derive("eps_clip_high", draft["eps_clip"], "--eps-clip")
    surrogate = draft["policy_surrogate"]
    if surrogate == "cispo" and draft["eps_clip"] < 1:
        draft.notice(
            f"cispo with --eps-clip {draft['eps_clip']} also clips ratios from below; "
            "the paper does not: give --eps-clip 1 or more"
        )
    if surrogate != "clip" and surrogate != "gspo" and draft["eps_clip_c"] is not None:
        draft.problem(
            f"--eps-clip-c bounds the clipped objective, not --policy-surrogate {surrogate}"
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
    if draft["use_rollout_logprobs"] and draft["use_decoupled_ppo"]:
        draft.problem(
            "--use-rollout-logprobs clips against the engines, --use-decoupled-ppo against the "
            "trainer's own policy: drop one"
        )
    if draft["use_rollout_logprobs"] and draft["use_tis"]:
        draft.problem(
            "--use-rollout-logprobs makes the engines' log-probabilities the old policy, which "
            "leaves --use-tis nothing to correct: drop one"
        )
    low, high = draft["tis_clip_low"], draft["tis_clip"]
    if low >= high:
        draft.problem(f"--tis-clip-low {low} must be below --tis-clip {high}")
    if draft["rs_lower_bound"] is None:
        draft.derive("rs_lower_bound", low, "--tis-clip-low")
    if draft["rs_upper_bound"] is None:
        draft.derive("rs_upper_bound", high, "--tis-clip")
    if draft["rs_lower_bound"] >= draft["rs_upper_bound"]:
        draft.problem(
            f"--rs-lower-bound {draft['rs_lower_bound']} must be below --rs-upper-bound "
            f"{draft['rs_upper_bound']}"
        )
    weighs = draft["use_tis"] or draft["use_decoupled_ppo"] or draft["get_mismatch_metrics"]
    for name in ("tis_level", "tis_mode", "tis_batch_normalize", "custom_tis_function_path"):
        if draft.given(name) and not weighs:
            draft.problem(f"{_flag(name)} has no effect without --use-tis or --use-decoupled-ppo")
    if draft["tis_batch_normalize"] and draft["tis_level"] == "geometric":
        draft.problem(
            "--tis-batch-normalize is not defined for --tis-level geometric: use token or sequence"
        )
    for name in ("rs_level", "rs_lower_bound", "rs_upper_bound"):
        if draft.given(name) and not draft["use_rs"]:
            draft.problem(f"{_flag(name)} has no effect without --use-rs")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def several_rewards(draft: Draft, facts: Facts) -> None:
    """gdpo, and only gdpo, learns from several entries of a reward."""
    keys, weights = draft["gdpo_reward_keys"], draft["gdpo_reward_weights"]
    if draft["advantage_estimator"] != "gdpo":
        if keys or weights:
            draft.problem(
                "--gdpo-reward-keys and --gdpo-reward-weights need --advantage-estimator gdpo"
            )
        return
    if not keys:
        draft.problem("--advantage-estimator gdpo needs --gdpo-reward-keys KEY [KEY ...]")
    if weights and len(weights) != len(keys):
        draft.problem(
            f"--gdpo-reward-weights has {len(weights)} values for {len(keys)} --gdpo-reward-keys: "
            "give one each, or none"
        )
    if not weights:
        draft.derive("gdpo_reward_weights", (1.0,) * len(keys), "1 each")
    draft.derive("normalize_advantages", True, "gdpo normalises over the batch")


def shaping(draft: Draft, facts: Facts) -> None:
    """Penalties on length have something to weigh and fit into a response."""
    length, limit = draft["overlong_buffer_len"], draft["rollout_max_response_len"]
    if length is not None and length > limit:
        draft.problem(
            f"--overlong-buffer-len {length} must not exceed --rollout-max-response-len {limit}"
        )
    if draft["length_penalty_coef"] and draft["length_penalty_type"] == "none":
        draft.problem("--length-penalty-coef needs --length-penalty-type linear or group")


def distillation(draft: Draft, facts: Facts) -> None:
    """A teacher runs somewhere."""
    kind = draft["opd_type"]
    if not draft["use_opd"]:
        given = [n for n in ("opd_type", "opd_teacher_load", "opd_kl_coef") if draft.given(n)]
        if given:
            draft.problem(f"{', '.join(map(_flag, given))} without --use-opd: add it, or drop them")
        return
    if kind is None:
        draft.problem("--use-opd needs --opd-type sglang or --opd-type megatron")
    if kind == "megatron" and draft["opd_teacher_load"] is None:
        draft.problem("--opd-type megatron needs --opd-teacher-load, the teacher's checkpoint")
    if kind == "sglang" and draft["opd_teacher_load"] is None and draft["rm_url"] is None:
        draft.problem(
            "--opd-type sglang needs a teacher: give --rm-url of a running server, or "
            "--opd-teacher-load with a Hugging Face directory to start one for"
        )


def critic(draft: Draft, facts: Facts) -> None:
    """Only ppo has a critic."""
    if draft["advantage_estimator"] == "ppo":
        return
    for name in ("value_clip", "num_critic_only_steps"):
        if draft.given(name):
            draft.problem(f"{_flag(name)} needs --advantage-estimator ppo, which has a critic")


def optimizer_states(draft: Draft, facts: Facts) -> None:
    """Forgetting moments is for Adam, and leaves nothing to save."""
    if draft["use_stateless_adam"]:
        if draft.megatron["optimizer"] != "adam":
            draft.problem(
                f"--use-stateless-adam needs --optimizer adam, got {draft.megatron['optimizer']}"
            )
        if not draft["no_save_optim"]:
            draft.problem("--use-stateless-adam has no state to save: add --no-save-optim")


def reference(draft: Draft, facts: Facts) -> None:
    """The reference starts as the model itself."""
    needed = draft["kl_coef"] or draft["use_kl_loss"] or draft["loss_type"] == "dpo_loss"
    if not draft["ref_load"]:
        draft.derive("ref_load", draft["hf_checkpoint"], "--hf-checkpoint")
    elif not needed:
        draft.notice("--ref-load has no effect without --use-kl-loss or --kl-coef")
    if draft["ref_update_interval"] is not None and not needed:
        draft.notice("--ref-update-interval has no effect without --use-kl-loss or --kl-coef")


RULES = (
    offline,
    custom_loss,
    aggregation,
    clips,
    groups,
    several_rewards,
    shaping,
    penalties,
    corrections,
    critic,
    distillation,
    optimizer_states,
    reference,
)
