"""What a training step is tried with; importable by ranks, which test modules are not."""

from dataclasses import dataclass

from slime_core.config.batch import BatchConfig
from slime_core.schedule.layout import ParallelLayout

STATIC = BatchConfig(
    global_batch_size=8, micro_batch_size=2, data_pad_size_multiplier=1, log_probs_chunk_size=16
)


@dataclass(frozen=True)
class Case:
    layout: ParallelLayout
    objective: str = "grpo"
    batch: BatchConfig = STATIC
    flags: tuple[str, ...] = ()
    tied: bool = False
