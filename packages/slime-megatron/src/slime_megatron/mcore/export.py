"""The sharded model as full Hugging Face tensors, bucket by bucket.

Every parameter lives on one pipeline stage, cut over its tensor-parallel ranks. For each bucket the
ranks of its stage exchange their parts in one all-gather, and one broadcast along the pipeline
brings the result to rank 0::

    stage 1, tensor ranks 0 and 1        [part 0][part 1]  ->  [part 0 | part 1] on both
    pipeline of tensor rank 0            stage 1  ->  stage 0

so the memory needed is one bucket, whatever the size of the model. Nothing is computed: what comes
out is bit for bit what the parameters hold.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from slime_convert.families import classifier_config
from slime_convert.hf import write_hf
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_megatron.buckets import Bucket, Piece, pack, row_bytes, split_runs, unpack
from slime_megatron.mcore.agreement import raise_everywhere
from slime_megatron.mcore.hf_load import located
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.tensors import settle

BUCKET_BYTES = 512 * 1024**2


def export(state: TrainState, *, bucket_bytes: int = BUCKET_BYTES) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, full tensor)`` on rank 0, in the order of the layers; nothing elsewhere.

    Every rank must run the iterator to its end.
    """
    for bucket in export_buckets(state, bucket_bytes=bucket_bytes):
        yield from bucket


@torch.no_grad()
def export_buckets(
    state: TrainState, *, bucket_bytes: int = BUCKET_BYTES, everywhere: bool = False
) -> Iterator[Bucket]:
    """Yield buckets of at most ``bucket_bytes`` (or one larger parameter) on rank 0.

    Every rank must run the iterator to its end; the others are given nothing unless ``everywhere``.
    A tied output layer comes once, as the embedding; vocabulary padding is cut off.
    """
    settle(state.chunks)
    if not everywhere and parallel_state.get_data_parallel_rank(with_context_parallel=True) != 0:
        return
    local = _local_parts(state)
    for run in split_runs(_plan(state, local), bucket_bytes):
        rows = _gather(run, local, state.device, everywhere=everywhere)
        if rows is not None:
            yield unpack(run, rows)


def on_rank_zero(
    state: TrainState, consume: Callable[[Iterator[Bucket]], None], *, bucket_bytes: int
) -> None:
    """Run ``consume`` on rank 0 over the whole model; its failure is raised on every rank.

    The other ranks feed it. When it fails the remaining buckets are still exchanged, so that no
    rank is left waiting in a collective.
    """
    buckets = export_buckets(state, bucket_bytes=bucket_bytes)
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            consume(buckets)
        except Exception as error:
            failure = error
    for _ in buckets:
        pass
    raise_everywhere(failure)


def save_hf(state: TrainState, directory: Path, *, source: Path) -> None:
    """Write the model as a Hugging Face checkpoint; config and tokenizer come from ``source``.

    Every rank calls it; rank 0 writes. The directory appears when it is complete.
    """

    def write(buckets: Iterator[Bucket]) -> None:
        write_hf(
            directory,
            (item for bucket in buckets for item in bucket),
            source=source,
            expected=state.family.parameters(state.hf_config).hf_tensors,
            config_changes=classifier_config(state.hf_config) if state.value_head else None,
        )

    on_rank_zero(state, write, bucket_bytes=BUCKET_BYTES)


def _local_parts(state: TrainState) -> dict[str, Tensor]:
    """This rank's part of every parameter that is exported, by its name in the whole model."""
    table = state.family.parameters(state.hf_config)
    parts = {
        parameter.name: tensor.detach()
        for chunk in state.chunks
        for parameter, tensor in located(chunk, table)
        if not parameter.alias
    }
    if parallel_state.get_expert_model_parallel_world_size() > 1:
        raise NotImplementedError("export with --expert-model-parallel-size > 1")
    return parts


def _plan(state: TrainState, local: dict[str, Tensor]) -> list[Piece]:
    """Every parameter of the model in the order of the table, the same on every rank."""
    group = parallel_state.get_pipeline_model_parallel_group()
    described = {name: (part.dtype, tuple(part.shape)) for name, part in local.items()}
    stages: list[Any] = [None] * parallel_state.get_pipeline_model_parallel_world_size()
    dist.all_gather_object(stages, described, group=group)
    owners = {name: stage for stage, names in reversed(list(enumerate(stages))) for name in names}
    table = state.family.parameters(state.hf_config)
    absent = [parameter.name for parameter in table.exported if parameter.name not in owners]
    if absent:
        raise CheckpointError(f"the model has no parameters {', '.join(absent[:20])}")
    return [
        Piece(parameter, owners[parameter.name], *stages[owners[parameter.name]][parameter.name])
        for parameter in table.exported
    ]


def _gather(
    run: list[Piece], local: dict[str, Tensor], device: torch.device, *, everywhere: bool
) -> Tensor | None:
    """The byte vectors of all tensor-parallel ranks, [tp, bytes], where they are wanted."""
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    rows = torch.empty(tp_size * row_bytes(run), dtype=torch.uint8, device=device)
    if run[0].stage == parallel_state.get_pipeline_model_parallel_rank():
        row = pack(run, [local[piece.parameter.name] for piece in run])
        group = parallel_state.get_tensor_model_parallel_group()
        dist.all_gather_into_tensor(rows, row, group=group)
    if not everywhere and tp_rank != 0:
        return None
    stages: Any = parallel_state.get_pipeline_model_parallel_group()
    if dist.get_world_size(stages) > 1:
        dist.broadcast(rows, src=dist.get_global_rank(stages, run[0].stage), group=stages)
    return rows.view(tp_size, -1) if everywhere or dist.get_rank() == 0 else None
