"""How rewards become advantages."""

from slime_core.config.draft import Draft, Facts, spelled

_WITHIN_A_GROUP = frozenset(
    {"grpo", "gspo", "cispo", "rloo", "maxrl", "gdpo", "reinforce_plus_plus_baseline"}
)
"""Estimators that compare the responses to one prompt."""

_OWN_NORMALIZATION = frozenset({"rloo", "remax", "maxrl", "gdpo"})
"""Estimators that are a normalisation of rewards: without it nothing is left of them."""

_DISCOUNTS = {"gamma": ("ppo", "reinforce_plus_plus"), "lambd": ("ppo",)}
"""Estimators in which each is."""

_WITH_KL = frozenset({"ppo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"})
"""Estimators whose reward holds a KL penalty."""


def groups(draft: Draft, facts: Facts) -> None:
    """Comparing within a group needs one; REINFORCE++ whitens."""
    if draft["loss_type"] not in ("policy_loss", "custom_loss"):
        return
    name = draft["advantage_estimator"]
    if draft["n_samples_per_prompt"] == 1:
        draft.derive("normalize_grpo_std", False, "one sample per prompt")
        trains = draft["num_rollout"] != 0
        if trains and name in _WITHIN_A_GROUP and draft["normalize_rewards"]:
            draft.notice(
                f"--advantage-estimator {name} compares the responses to one prompt, and "
                "--n-samples-per-prompt is 1: every advantage is 0 unless a generate function "
                "returns several"
            )
    if name.startswith("reinforce_plus_plus") and not draft["normalize_advantages"]:
        draft.problem(f"--advantage-estimator {name} needs --normalize-advantages")


def normalization(draft: Draft, facts: Facts) -> None:
    """What switches a normalisation off is said to an estimator that has it."""
    name = draft["advantage_estimator"]
    if name not in _OWN_NORMALIZATION:
        return
    if not draft["normalize_rewards"]:
        draft.problem(
            f"--disable-rewards-normalization leaves nothing of --advantage-estimator {name}, "
            "which is a way to normalise rewards: drop it"
        )
    if draft.given("normalize_grpo_std") and not draft["normalize_grpo_std"] and name != "gdpo":
        draft.notice(
            f"--disable-grpo-std-normalization has no effect with --advantage-estimator {name}, "
            "which divides by no standard deviation"
        )


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
    if draft["reward_key"] is None and keys:
        draft.derive("reward_key", keys[0], "the first of --gdpo-reward-keys")
    draft.derive("normalize_advantages", True, "gdpo normalises over the batch")


_OF_A_FAILURE_POLICY = {"reward_failure_score": "score", "reward_num_retries": "retry"}


def failures_of_rewards(draft: Draft, facts: Facts) -> None:
    """What belongs to one --reward-failure-policy is not given with another."""
    policy = draft["reward_failure_policy"]
    for name, needed in _OF_A_FAILURE_POLICY.items():
        if draft.given(name) and policy != needed:
            draft.problem(
                f"{spelled(name)} has no effect with --reward-failure-policy {policy}: "
                f"give --reward-failure-policy {needed}, or drop it"
            )


def shaping_fits(draft: Draft, facts: Facts) -> None:
    """A penalty on length needs a reward it can be added to."""
    flags = {
        "--overlong-buffer-len": draft["overlong_buffer_len"] is not None,
        "--length-penalty-type": draft["length_penalty_type"] != "none",
    }
    given = ", ".join(flag for flag, used in flags.items() if used)
    if not given:
        return
    if draft["custom_reward_post_process_path"] is not None:
        draft.problem(
            f"{given} and --custom-reward-post-process-path both say what becomes of rewards: "
            "drop one"
        )
    if draft["advantage_estimator"] == "maxrl":
        draft.problem(
            f"{given} makes rewards other than 0 and 1, which --advantage-estimator maxrl learns "
            "from: drop one"
        )
    keys = draft["gdpo_reward_keys"]
    if draft["advantage_estimator"] == "gdpo" and keys and draft["reward_key"] not in keys:
        draft.problem(
            f"{given} changes the reward --reward-key {draft['reward_key']}, which is none of "
            f"--gdpo-reward-keys {' '.join(keys)}: give one of them"
        )


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
            needed = "needs --advantage-estimator ppo, which has a critic: add it, or leave it out"
            draft.idle([name], f"{spelled(name)} {needed}")


def discounts(draft: Draft, facts: Facts) -> None:
    """Only estimators that look along a response discount."""
    name = draft["advantage_estimator"]
    for field, estimators in _DISCOUNTS.items():
        if draft.given(field) and name not in estimators:
            draft.notice(
                f"--{field} has no effect with --advantage-estimator {name}: it is for "
                f"{' and '.join(estimators)}"
            )


RULES = (
    groups,
    normalization,
    penalty_in_the_reward,
    several_rewards,
    failures_of_rewards,
    shaping,
    shaping_fits,
    critic,
    discounts,
)
