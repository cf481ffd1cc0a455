"""An iteration too small for one step, told with the user's code that its groups come from."""

from collections import Counter
from collections.abc import Sequence

from slime_core.batch import TrainBatch
from slime_core.config.flat import Flat
from slime_core.errors import ConfigError
from slime_core.plugins.forms import functions_of_groups


def require_a_step(batch: TrainBatch, flat: Flat) -> None:
    """Check that groups of the user's making are enough for a step; of any size, if they are.

    Groups that are as many and as large as the flags say are left to ``schedule.plan``, and so are
    those of a run without a class or function that makes them.

    Raises:
        ConfigError: with what was asked for, what came, and from where.
    """
    size, makers = flat["global_batch_size"], functions_of_groups(flat)
    rollouts = set(zip(batch.group_ids.tolist(), batch.rollout_ids.tolist(), strict=True))
    if len(rollouts) >= size or not makers:
        return
    wanted, each = flat["rollout_batch_size"], flat["n_samples_per_prompt"]
    sizes = sorted(Counter(group for group, _ in rollouts).values())
    if sizes == [each] * wanted:
        return
    segments = batch.num_samples - len(rollouts)
    shared = f" (of {batch.num_samples} samples, some share a rollout_id)" if segments else ""
    raise ConfigError(
        f"--global-batch-size is {size} but the iteration holds {len(rollouts)} rollouts{shared}, "
        f"not enough for one step: {_told(sizes)}, instead of {wanted} groups of {each} "
        f"(--rollout-batch-size, --n-samples-per-prompt). Look at {makers}: "
        + "; ".join(_advice(sizes, wanted, each))
    )


def _told(sizes: Sequence[int]) -> str:
    """Groups by their size, such as "1 group of 1, 5 groups of 2"."""
    return ", ".join(
        f"{number} group{'s' * (number > 1)} of {size}" for size, number in Counter(sizes).items()
    )


def _advice(sizes: Sequence[int], wanted: int, each: int) -> list[str]:
    found: list[str] = []
    if set(sizes) != {each}:
        alike = f", or give --n-samples-per-prompt {sizes[0]}" if len(set(sizes)) == 1 else ""
        found.append(f"make its groups of {each} samples, args.n_samples_per_prompt{alike}")
    if len(sizes) != wanted:
        found.append(f"return {wanted} groups, args.rollout_batch_size")
    return found
