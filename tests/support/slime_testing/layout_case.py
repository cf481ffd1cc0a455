"""What a training step is tried with; importable by ranks, which test modules are not."""

from dataclasses import dataclass

from slime_core.config.batch import BatchConfig
from slime_core.schedule.layout import ParallelLayout

STATIC = BatchConfig(
    global_batch_size=8, micro_batch_size=2, data_pad_size_multiplier=1, log_probs_chunk_size=16
)

FEW = BatchConfig(global_batch_size=2, micro_batch_size=2, data_pad_size_multiplier=1)

OVERLAPPING = (
    "--use-distributed-optimizer",
    "--overlap-grad-reduce",
    "--overlap-param-gather",
    "--ddp-bucket-size=2000",
)
"""Gradients and weights travel in many pieces while others are computed."""


@dataclass(frozen=True)
class Case:
    layout: ParallelLayout
    objective: str = "grpo"
    batch: BatchConfig = STATIC
    flags: tuple[str, ...] = ()
    tied: bool = False
    few: bool = False
    """Three samples, so that some of four ranks have none."""

    @property
    def argv(self) -> tuple[str, ...]:
        """Megatron's words for the layout, and the case's own."""
        return (
            f"--tensor-model-parallel-size={self.layout.tp}",
            f"--pipeline-model-parallel-size={self.layout.pp}",
            f"--context-parallel-size={self.layout.cp}",
            f"--expert-model-parallel-size={self.layout.ep}",
            "--make-vocab-size-divisible-by=8",
            *self.flags,
        )
