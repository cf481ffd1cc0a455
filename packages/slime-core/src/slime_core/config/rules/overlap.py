"""Generation beside training: how far ahead, and what that asks of the rest."""

from slime_core.config.algorithm import OFFLINE_LOSSES
from slime_core.config.draft import Draft, Facts

_CORRECTIONS = ("use_tis", "use_rs", "use_rollout_logprobs", "use_decoupled_ppo", "keep_old_actor")


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


RULES = (how_far, devices, old_tokens, stale_prefixes)
