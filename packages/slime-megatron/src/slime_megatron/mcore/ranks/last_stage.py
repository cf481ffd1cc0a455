"""The last stage of a pipeline, which alone sees what the model gives."""

from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state


def is_last_stage() -> bool:
    """Whether this rank holds the end of the model."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=True)


def from_last_stage(value: Any) -> Any:
    """What the last pipeline stage holds, on every rank of its pipeline."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return value
    box = [value]
    last: Any = parallel_state.get_pipeline_model_parallel_last_rank()
    group: Any = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast_object_list(box, src=last, group=group)
    return box[0]
