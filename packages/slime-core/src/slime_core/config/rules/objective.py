"""What the optimizer minimises: loss type, surrogate, means, penalties, moments."""

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.draft import Draft, Facts, spelled
from slime_core.config.rules import offline as given_responses

_SURROGATES = {"gspo": "gspo", "cispo": "cispo"}
"""Estimators that come with a surrogate of their own."""


def offline(draft: Draft, facts: Facts) -> None:
    """Learning from given responses has no advantages."""
    kind = draft["loss_type"]
    if kind in OFFLINE_LOSSES:
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
    if surrogate not in ("clip", "gspo") and draft["eps_clip_c"] is not None:
        draft.problem(
            f"--eps-clip-c bounds the clipped objective, not --policy-surrogate {surrogate}"
        )


def penalties(draft: Draft, facts: Facts) -> None:
    """One KL term at most, of a kind that has a gradient."""
    if draft["kl_coef"] and draft["kl_loss_coef"]:
        draft.problem(
            f"--kl-coef {draft['kl_coef']} (in the reward) and --kl-loss-coef "
            f"{draft['kl_loss_coef']} (in the loss) exclude each other: drop one"
        )
    if draft["kl_loss_coef"] and not draft["use_kl_loss"]:
        draft.notice("--kl-loss-coef has no effect without --use-kl-loss")
    if draft["use_unbiased_kl"] and not draft["use_kl_loss"]:
        draft.notice("--use-unbiased-kl has no effect without --use-kl-loss")
    if draft.given("kl_loss_type") and not (draft["use_kl_loss"] or draft["kl_coef"]):
        draft.notice("--kl-loss-type has no effect without --use-kl-loss or --kl-coef")
    weighs = draft["use_kl_loss"] and draft["kl_loss_coef"]
    if weighs and draft["kl_loss_type"] == "k1" and not draft["use_unbiased_kl"]:
        draft.notice(
            "--kl-loss-type k1 as a loss has a gradient of mean zero on samples of the policy; "
            "low_var_kl (k3) is what GRPO uses"
        )
    if weighs and draft["kl_loss_type"] == "k2" and draft["use_unbiased_kl"]:
        draft.notice(
            "--use-unbiased-kl makes the gradient of k1 and k3 that of the KL divergence; k2 has "
            "it without: drop --use-unbiased-kl, or give --kl-loss-type k3"
        )


def optimizer_states(draft: Draft, facts: Facts) -> None:
    """Forgetting moments is for Adam, and leaves nothing to save."""
    if draft["use_stateless_adam"]:
        if draft.megatron["optimizer"] != "adam":
            draft.problem(
                f"--use-stateless-adam needs --optimizer adam, got {draft.megatron['optimizer']}"
            )
        if not draft["no_save_optim"]:
            draft.problem("--use-stateless-adam has no state to save: add --no-save-optim")


def nucleus(draft: Draft, facts: Facts) -> None:
    """Restricting log-probabilities to a nucleus needs one."""
    if draft["use_top_p_log_probs"] and draft["rollout_top_p"] == 1:
        draft.problem("--use-top-p-log-probs has no effect with --rollout-top-p 1: drop it")


def gates(draft: Draft, facts: Facts) -> None:
    """sapo, and only sapo, has gates."""
    names = [
        n for n in ("sapo_temperature_positive", "sapo_temperature_negative") if draft.given(n)
    ]
    if names and draft["policy_surrogate"] != "sapo":
        draft.problem(f"{spelled(*names)} without --policy-surrogate sapo: add it, or drop them")


def preferences(draft: Draft, facts: Facts) -> None:
    """dpo_loss, and only dpo_loss, has its parameters."""
    names = ("dpo_beta", "dpo_loss_type", "dpo_label_smoothing")
    given = [name for name in names if draft.given(name)]
    if given and draft["loss_type"] != "dpo_loss":
        draft.problem(f"{spelled(*given)} without --loss-type dpo_loss: add it, or drop them")
    smoothed = draft["dpo_label_smoothing"] > 0
    if smoothed and draft["dpo_loss_type"] != "sigmoid":
        draft.problem(
            f"--dpo-label-smoothing is defined for --dpo-loss-type sigmoid, not "
            f"{draft['dpo_loss_type']}"
        )


RULES = (
    offline,
    custom_loss,
    aggregation,
    clips,
    gates,
    nucleus,
    preferences,
    penalties,
    optimizer_states,
    *given_responses.RULES,
)
