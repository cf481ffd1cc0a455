"""``Passes`` on a Megatron model."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from megatron.core import parallel_state
from slime_core.batch import Ragged

from slime_megatron.iteration.passes import Entropy, StepResult, StepSize, TrainItem
from slime_megatron.mcore.optimizer import adam_state
from slime_megatron.mcore.passes.forward import ScoreConfig, score_responses
from slime_megatron.mcore.passes.step import train_step
from slime_megatron.mcore.ranks.last_stage import is_last_stage
from slime_megatron.mcore.ranks.reduce import GroupReduce
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.snapshots import Snapshots
from slime_megatron.packing.pack import PackedMicrobatch, PackLayout
from slime_megatron.trainer_hooks import TrainerHooks

_NO_HOOKS = TrainerHooks()


class ModelPasses:
    """The verbs of ``iteration.passes.Passes`` for one rank; as long-lived as the model."""

    def __init__(
        self,
        state: TrainState,
        snapshots: Snapshots,
        config: ScoreConfig,
        *,
        pad_multiple: int,
        hooks: TrainerHooks = _NO_HOOKS,
        stateless: bool = False,
        reads_after: bool = False,
    ) -> None:
        self._hooks, self._policy = hooks, ""
        self._iteration = self._num_steps = 0
        self._stateless = stateless
        self._state, self._snapshots, self._config = state, snapshots, config
        tp_size = parallel_state.get_tensor_model_parallel_world_size()
        self.layout = PackLayout(
            cp_size=parallel_state.get_context_parallel_world_size(),
            cp_rank=parallel_state.get_context_parallel_rank(),
            row_multiple=tp_size * pad_multiple,
            reads_after=reads_after,
        )
        self.last_stage = is_last_stage()
        first = parallel_state.get_tensor_model_parallel_rank() == self.layout.cp_rank == 0
        self.reports = self.last_stage and first
        self.context = GroupReduce(parallel_state.get_context_parallel_group(), state.device)
        self.data = GroupReduce(parallel_state.get_data_parallel_group(), state.device)

    def begin(self, iteration: int) -> None:
        """Count steps from here on as those of ``iteration``."""
        self._iteration, self._num_steps = iteration, 0

    @contextmanager
    def using(self, policy: str) -> Generator[None]:
        """Have the weights kept as ``policy`` in the model inside the block."""
        with self._snapshots.using(policy):
            self._policy = f"{policy}_"
            try:
                yield
            finally:
                self._policy = ""

    def scores(
        self, microbatches: Sequence[PackedMicrobatch], entropy: Entropy = Entropy.NONE
    ) -> tuple[Ragged, ...] | None:
        """Log-probabilities and entropies, or values, by samples in the microbatches' order."""
        self._hooks.before_log_probs(self._state.chunks, self._policy)
        return score_responses(self._state, microbatches, self._config, entropy=entropy)

    def step(
        self,
        items: Sequence[TrainItem],
        size: StepSize,
        entropy: Entropy = Entropy.NONE,
        *,
        logits: bool = False,
    ) -> StepResult:
        """Take one optimizer step."""
        state = self._state
        if self._stateless:
            adam_state.reset(state.optimizer)
        self._hooks.before_train_step(
            self._iteration, self._num_steps, state.chunks, state.optimizer, state.scheduler
        )
        self._num_steps += 1
        return train_step(state, items, self._config, size=size, entropy=entropy, logits=logits)
