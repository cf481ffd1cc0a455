"""Steps, microbatches, oversampling."""

from math import ceil

from slime_core.config.algorithm import PAIR_LOSSES
from slime_core.config.draft import Draft, Facts

_USUAL_TOKENS = 4096


def pairs(draft: Draft, facts: Facts) -> None:
    """Of a preference there is one pair a row; batch sizes count pairs."""
    kind, samples = draft["loss_type"], draft["n_samples_per_prompt"]
    if kind in PAIR_LOSSES and samples != 1:
        draft.problem(
            f"--n-samples-per-prompt {samples} with --loss-type {kind}: a row is one pair, leave "
            "it out"
        )


def samples_per_iteration(draft: Draft, facts: Facts) -> None:
    """rollout_batch_size * n_samples_per_prompt = global_batch_size * num_steps_per_rollout."""
    prompts, samples = draft["rollout_batch_size"], draft["n_samples_per_prompt"]
    total, size, steps = (
        prompts * samples,
        draft["global_batch_size"],
        draft["num_steps_per_rollout"],
    )
    if not size and total % (steps or 1) == 0:
        draft.derive("global_batch_size", total // (steps or 1), "samples over steps")
        size = draft["global_batch_size"]
    if not steps and size and total % size == 0:
        draft.derive("num_steps_per_rollout", total // size, "samples over --global-batch-size")
        steps = draft["num_steps_per_rollout"]
    if not size or not steps or size * steps != total:
        draft.problem(
            f"--rollout-batch-size {prompts} * --n-samples-per-prompt {samples} = {total} samples "
            "do not divide into steps: must equal --global-batch-size "
            f"{size or '(not given)'} * --num-steps-per-rollout {steps or '(not given)'}"
        )


def oversampling(draft: Draft, facts: Facts) -> None:
    """At least the batch is asked for."""
    size, batch = draft["over_sampling_batch_size"], draft["rollout_batch_size"]
    if size is None:
        draft.derive("over_sampling_batch_size", batch, "--rollout-batch-size")
    elif size < batch:
        draft.problem(
            f"--over-sampling-batch-size {size} must be at least --rollout-batch-size {batch}"
        )


def partial_rollouts(draft: Draft, facts: Facts) -> None:
    """Masking old tokens means something only when there are any."""
    if draft["mask_offpolicy_in_partial_rollout"] and not draft["partial_rollout"]:
        draft.problem("--mask-offpolicy-in-partial-rollout needs --partial-rollout")


def dynamic_batches(draft: Draft, facts: Facts) -> None:
    """Packing limits; balancing by FLOPs is a kind of dynamic batching."""
    if draft["balance_by_flops"]:
        draft.derive("use_dynamic_batch_size", True, "--balance-by-flops")
        draft.derive("balance_data", True, "--balance-by-flops")
    if draft["max_tokens_per_gpu"] is not None and not draft["use_dynamic_batch_size"]:
        draft.notice("--max-tokens-per-gpu has no effect without --use-dynamic-batch-size")
    if draft["use_dynamic_batch_size"] and draft.given("micro_batch_size"):
        draft.notice("--micro-batch-size has no effect with --use-dynamic-batch-size")
    if draft["max_tokens_per_gpu"] is None:
        longest = (draft["rollout_max_prompt_len"] or 0) + draft["rollout_max_response_len"]
        share = ceil(longest / max(1, draft.megatron["context_parallel_size"]))
        draft.derive(
            "max_tokens_per_gpu", max(_USUAL_TOKENS, share), "longest sample, 4096 or more"
        )


def padding(draft: Draft, facts: Facts) -> None:
    """Aligned shapes pay off on GPUs only."""
    if draft["device"] == "cpu" and not draft.given("data_pad_size_multiplier"):
        draft.derive("data_pad_size_multiplier", 1, "device cpu")


RULES = (
    pairs,
    samples_per_iteration,
    oversampling,
    partial_rollouts,
    dynamic_batches,
    padding,
)
