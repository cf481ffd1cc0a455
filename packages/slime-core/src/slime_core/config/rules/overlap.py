"""Generation beside training: how far ahead, and what that asks of the rest."""

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.draft import Draft, Facts, spelled

_CORRECTIONS = ("use_tis", "use_rs", "use_rollout_logprobs", "use_decoupled_ppo", "keep_old_actor")


def bound_on_age(draft: Draft, facts: Facts) -> None:
    """Tokens are behind only where something lets weights change between writing and training."""
    bounds = [name for name in ("max_staleness", "max_token_staleness") if draft.given(name)]
    replayed = draft["load_debug_rollout_data"] is not None
    changes = draft["partial_rollout"] or draft["update_weights_interval"] > 1 or replayed
    own = draft["rollout_function_path"] or draft["data_source_path"]  # may bring older samples
    if draft["loss_type"] in OFFLINE_LOSSES or draft["async_buffer_size"] or changes or own:
        return
    if bounds:
        draft.notice(
            f"{spelled(*bounds)} has no effect: generation and training take turns, so every token "
            "is written by the weights that it trains; slime-train-async, or --async-buffer-size 1 "
            "or more, generates ahead"
        )


def how_far(draft: Draft, facts: Facts) -> None:
    """No further ahead than tokens may be old; nothing is generated where nothing is drawn."""
    if draft["async_buffer_size"] is None:
        draft.derive("async_buffer_size", 0, "generation and training take turns")
    ahead, oldest = draft["async_buffer_size"], draft["max_staleness"]
    if draft["loss_type"] in OFFLINE_LOSSES and ahead:
        draft.derive("async_buffer_size", 0, "--loss-type reads its samples from files")
        return
    if oldest is None:
        return
    iterations = oldest * draft["update_weights_interval"]
    if ahead > iterations:
        draft.derive("async_buffer_size", iterations, "--max-staleness")
    if draft["max_token_staleness"] is None or draft["max_token_staleness"] > iterations:
        draft.derive("max_token_staleness", iterations, "--max-staleness")


def devices(draft: Draft, facts: Facts) -> None:
    """Two that work at once cannot lend each other their memory."""
    if draft["async_buffer_size"] and draft["colocate"] and facts.num_gpus:
        draft.problem(
            f"--async-buffer-size {draft['async_buffer_size']} with --colocate: generation cannot "
            "go on while the trainer has the engines' GPUs; give them their own "
            "(--rollout-num-gpus) or leave --async-buffer-size out"
        )
    elif draft["async_buffer_size"] and (draft["offload_train"] or draft["offload_rollout"]):
        draft.problem(
            f"--async-buffer-size {draft['async_buffer_size']} with --offload: generation cannot "
            "go on without the engines' memory, nor training without the trainer's; leave one out"
        )


def never_draining(draft: Draft, facts: Facts) -> None:
    """Groups go on from one rollout to the next only where a run draws them itself, and ahead."""
    if not draft["fully_async"]:
        return
    obstacles = {
        f"--loss-type {draft['loss_type']}: it reads its samples from files": (
            draft["loss_type"] in OFFLINE_LOSSES
        ),
        "--debug-train-only: nothing is generated": draft["debug_train_only"],
        "--num-rollout 0: nothing but an evaluation is generated": draft["num_rollout"] == 0,
        f"--rollout-function-path {draft['rollout_function_path']}: it replaces what keeps the "
        "engines busy": draft["rollout_function_path"] is not None,
        "--partial-rollout: nothing is cut off that could go on": draft["partial_rollout"],
        "--max-staleness 0: generation has to wait for the trainer": draft["max_staleness"] == 0,
    }
    found = next((text for text, met in obstacles.items() if met), None)
    if found is not None:
        draft.problem(f"--fully-async with {found}; leave one out")
    elif not draft["async_buffer_size"]:
        draft.problem(
            "--fully-async with --async-buffer-size 0: no rollout may be generated before the "
            "trainer asks for it; give 1 or more"
        )


def old_tokens(draft: Draft, facts: Facts) -> None:
    """Tokens of other weights bias the gradient unless something corrects for them."""
    if draft["async_buffer_size"] and not any(draft[name] for name in _CORRECTIONS):
        draft.notice(
            "generation goes ahead of training, so tokens come from earlier weights; nothing "
            "corrects for that: consider --use-tis"
        )


def stale_prefixes(draft: Draft, facts: Facts) -> None:
    """Requests that stay in an engine keep it from forgetting prefixes of the old weights."""
    radix = not draft.server.values.get("disable_radix_cache", False)
    if draft["weight_update_mode"] == "retract" and radix:
        draft.problem(
            "--weight-update-mode retract computes running requests anew, but the engines' radix "
            "cache would still give new ones prefixes of the old weights: add "
            "--sglang-disable-radix-cache, or use --weight-update-mode abort"
        )


RULES = (bound_on_age, how_far, devices, never_draining, old_tokens, stale_prefixes)
