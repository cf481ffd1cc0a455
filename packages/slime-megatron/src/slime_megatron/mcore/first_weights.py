"""The weights a rank starts from: the trained policy's, and those it is measured against."""

from collections.abc import Collection
from pathlib import Path

from slime_megatron.iteration.objective import OLD_ACTOR, REFERENCE
from slime_megatron.mcore.checkpoints import checkpoint
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.hf_load import load_hf
from slime_megatron.mcore.weights.snapshots import Snapshots
from slime_megatron.trainer_config import TrainerConfig, is_hugging_face


def take_first_weights(
    state: TrainState,
    snapshots: Snapshots,
    config: TrainerConfig,
    *,
    policies: Collection[str],
    load: Path | None,
) -> int:
    """Put ``policies`` aside, then take the trained one's weights; the first iteration to train.

    ``load``: a complete checkpoint, whose whole state is continued after its iteration; None for
    ``config.initial_weights`` and iteration 0. Every rank calls it.

    Raises:
        CheckpointError: a directory holds no weights, or those of another model.
    """
    in_model: Path | None = None
    iteration = 0
    for policy in policies:
        if policy != OLD_ACTOR:
            in_model = _fixed_weights(config, policy, load)
            load_weights(state, in_model)
            snapshots.store(policy)
    if load is not None:
        iteration = checkpoint.load(state, load) + 1
    elif in_model != config.initial_weights:
        load_weights(state, config.initial_weights)
    if OLD_ACTOR in policies:
        snapshots.store(OLD_ACTOR)
    return iteration


def load_weights(state: TrainState, directory: Path) -> None:
    """Weights alone, of a Hugging Face directory or of a checkpoint."""
    if is_hugging_face(directory):
        load_hf(state.chunks, state.family, state.hf_config, directory, optimizer=state.optimizer)
    else:
        checkpoint.load_model(state, directory)
        state.optimizer.reload_model_params()


def _fixed_weights(config: TrainerConfig, policy: str, load: Path | None) -> Path:
    """A reference that follows the policy continues where the checkpoint left it."""
    if policy == REFERENCE and config.reference.ref_update_interval and load is not None:
        kept = load / REFERENCE
        if kept.is_dir():
            return kept
    return config.fixed_weights(policy)
