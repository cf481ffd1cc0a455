"""From a rollout's samples to optimizer steps and microbatches."""

from dataclasses import dataclass

from slime_core.config.flags import flag


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Sizes of steps and microbatches.

    rollout_batch_size * n_samples_per_prompt = global_batch_size * num_steps_per_rollout
    """

    global_batch_size: int = flag(default=0, at_least=1)
    """Rollouts (responses) per optimizer step; by default one step takes the whole iteration."""
    num_steps_per_rollout: int = flag(default=0, at_least=1)
    """Optimizer steps per iteration."""
    micro_batch_size: int = flag(default=1, at_least=1)
    """Samples per microbatch, when the batch size is not dynamic."""
    balance_data: bool = False
    """Give every data-parallel rank about the same amount of work."""
    balance_by_flops: bool = False
    """Cut microbatches of equal work instead of equal tokens."""
    use_dynamic_batch_size: bool = False
    """Fill each microbatch with samples up to --max-tokens-per-gpu."""
    max_tokens_per_gpu: int | None = flag(default=None, at_least=1)
    """Tokens of a microbatch on one GPU; a context-parallel group holds cp times as many."""
    log_probs_max_tokens_per_gpu: int | None = flag(
        default=None,
        at_least=1,
        planned="passes without gradient take the microbatches of --max-tokens-per-gpu",
    )
    """The same for passes without gradient."""
    log_probs_chunk_size: int = flag(default=-1, at_least=-1)
    """Tokens whose logits exist at one time. -1 means 1024 on a CPU and 2048 on a GPU, where a
    training pass keeps them for going back if they fill at most half of the memory that is free."""
    data_pad_size_multiplier: int = flag(default=128, at_least=1)
    """A packed microbatch is padded to a multiple of this many tokens times the tensor-parallel
    size; 1 on CPU unless given."""
