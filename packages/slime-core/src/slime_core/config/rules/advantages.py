"""How rewards become advantages."""

from slime_core.config.draft import Draft, Facts, spelled

_WITHIN_A_GROUP = frozenset(
    {"grpo", "gspo", "cispo", "rloo", "maxrl", "gdpo", "reinforce_plus_plus_baseline"}
)
"""Estimators that compare the responses to one prompt."""

_WITH_KL = frozenset({"ppo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"})
"""Estimators whose reward holds a KL penalty."""


def groups(draft: Draft, facts: Facts) -> None:
    """Comparing within a group needs one; REINFORCE++ whitens."""
    if draft["loss_type"] not in ("policy_loss", "custom_loss"):
        return
    name = draft["advantage_estimator"]
    if draft["n_samples_per_prompt"] == 1:
        draft.derive("normalize_grpo_std", False, "one sample per prompt")
        if name in _WITHIN_A_GROUP and draft["normalize_rewards"]:
            draft.notice(
                f"--advantage-estimator {name} compares the responses to one prompt, and "
                "--n-samples-per-prompt is 1: every advantage is 0 unless a generate function "
                "returns several"
            )
    if name.startswith("reinforce_plus_plus") and not draft["normalize_advantages"]:
        draft.problem(f"--advantage-estimator {name} needs --normalize-advantages")


def penalty_in_the_reward(draft: Draft, facts: Facts) -> None:
    """Group-relative estimators have no per-token reward to put a penalty into."""
    name = draft["advantage_estimator"]
    used = name in _WITH_KL or draft["custom_advantage_function_path"] is not None
    if draft["kl_coef"] and not used:
        draft.problem(
            f"--kl-coef {draft['kl_coef']} has no effect with --advantage-estimator {name}: give "
            "--use-kl-loss --kl-loss-coef, or one of " + ", ".join(sorted(_WITH_KL))
        )


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
    if draft.given("overlong_penalty_factor") and length is None:
        draft.problem("--overlong-penalty-factor needs --overlong-buffer-len")
    kind, weight = draft["length_penalty_type"], draft["length_penalty_coef"]
    if (kind == "none") != (weight == 0):
        draft.problem(
            f"--length-penalty-type {kind} with --length-penalty-coef {weight}: give both, a type "
            "and a weight above 0"
        )


def needs_critic(draft: Draft) -> bool:
    """Whether a second model learns what to expect."""
    return draft["advantage_estimator"] == "ppo" and draft["compute_advantages_and_returns"]


def critic(draft: Draft, facts: Facts) -> None:
    """Only ppo has a critic."""
    if draft["advantage_estimator"] == "ppo":
        return
    for name in ("value_clip", "num_critic_only_steps"):
        if draft.given(name):
            draft.problem(f"{spelled(name)} needs --advantage-estimator ppo, which has a critic")


RULES = (groups, penalty_in_the_reward, several_rewards, shaping, critic)
