"""Settings of the trainer: a complete Megatron command line and what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slime_core.config.flags import derived

if TYPE_CHECKING:
    from slime_core.schedule.plan import ParallelLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class MegatronConfig:
    """What Megatron's own parser is given, and the values it will arrive at."""

    argv: tuple[str, ...] = derived(default=())
    """The whole command line for ``megatron.training.arguments``, derived flags included."""
    values: Mapping[str, Any] = derived(factory=dict[str, Any])
    """Destination -> value for every Megatron flag: given, derived, re-defaulted or default."""
    world_size: int = derived(default=1)
    """Trainer ranks."""

    def __getitem__(self, dest: str) -> Any:
        """The value of one Megatron destination."""
        return self.values[dest]

    @property
    def layout(self) -> "ParallelLayout":
        """Sizes of the parallel groups."""
        from slime_core.schedule.plan import ParallelLayout

        tp, pp, cp = (
            self.values[f"{kind}_parallel_size"]
            for kind in ("tensor_model", "pipeline_model", "context")
        )
        return ParallelLayout(
            dp=self.world_size // (tp * pp * cp),
            cp=cp,
            tp=tp,
            pp=pp,
            vpp=self.values.get("virtual_pipeline_model_parallel_size") or 1,
            ep=self.values["expert_model_parallel_size"],
        )

    @property
    def seed(self) -> int:
        """Seed of initialisation and dropout."""
        return self.values["seed"]

    @property
    def train_iters(self) -> int:
        """Optimizer steps of the whole run."""
        return self.values["train_iters"]
