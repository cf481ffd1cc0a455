"""The sharded model as full Hugging Face tensors, bucket by bucket.

Every parameter lives on one pipeline stage, cut over its tensor-parallel ranks. For each bucket the
ranks of its stage exchange their parts in one all-gather, and one broadcast along the pipeline
brings the result to rank 0::

    stage 1, tensor ranks 0 and 1        [part 0][part 1]  ->  [part 0 | part 1] on both
    pipeline of tensor rank 0            stage 1  ->  stage 0

so the memory needed is one bucket, whatever the size of the model. Nothing is computed: what comes
out is bit for bit what the parameters hold.

Routed experts that are divided over ranks (``--expert-model-parallel-size``, or an
``--expert-tensor-parallel-size`` of their own) are exchanged among those ranks instead, in the same
way; they come after everything else. The least that can be exchanged is then one expert of every
such rank, which may be more than a bucket; it is handed on in buckets all the same.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from slime_convert.families import classifier_config
from slime_convert.hf import write_hf
from slime_convert.hf.carried import CarriedTensors
from torch import Tensor

from slime_megatron.buckets import Bucket, Piece, pack, row_bytes, split_runs, unpack_within
from slime_megatron.mcore.ranks.agreement import raise_everywhere
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.export_plan import ExportPlan, divided_experts, plan_of
from slime_megatron.mcore.weights.tensors import settle

BUCKET_BYTES = 512 * 1024**2


def export(state: TrainState, *, bucket_bytes: int = BUCKET_BYTES) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, full tensor)`` on rank 0, in the order of the layers; nothing elsewhere.

    Every rank must run the iterator to its end.
    """
    for bucket in export_buckets(state, bucket_bytes=bucket_bytes):
        yield from bucket


@torch.no_grad()
def export_buckets(
    state: TrainState,
    *,
    bucket_bytes: int = BUCKET_BYTES,
    everywhere: bool = False,
    to: Collection[int] = (0,),
) -> Iterator[Bucket]:
    """Yield buckets of at most ``bucket_bytes`` (or one larger parameter) on the ranks ``to``.

    Every rank must run the iterator to its end; the others are given nothing, unless
    ``everywhere``. A tied output layer comes once, as the embedding; vocabulary padding is cut off.
    """
    settle(state.chunks)
    everyone = everywhere or tuple(to) != (0,)  # then every copy of the weights is put together
    if not everyone and not (_Holders.of(expert=False).first or _Holders.of(expert=True).first):
        return
    plan = plan_of(state)
    mine = everywhere or dist.get_rank() in to
    for run in split_runs(plan.pieces, bucket_bytes):
        holders = _Holders.of(expert=run[0].expert)
        if everyone or holders.first:
            rows = _gather(run, plan, holders, state.device, everywhere=everyone)
            if rows is not None and mine:
                yield from unpack_within(run, rows, bucket_bytes)


def on_ranks(
    state: TrainState,
    ranks: Collection[int],
    consume: Callable[[Iterator[Bucket]], None],
    *,
    bucket_bytes: int,
) -> None:
    """Run ``consume`` on ``ranks`` over the whole model; their failure is raised on every rank.

    The other ranks feed them. When one fails the remaining buckets are still exchanged, so that no
    rank is left waiting in a collective.
    """
    buckets = export_buckets(state, bucket_bytes=bucket_bytes, to=ranks)
    failure: Exception | None = None
    if dist.get_rank() in ranks:
        try:
            consume(buckets)
        except Exception as error:
            failure = error
    for _ in buckets:
        pass
    raise_everywhere(failure)


def save_hf(state: TrainState, directory: Path, *, source: Path) -> None:
    """Write the model as a Hugging Face checkpoint; config and tokenizer come from ``source``.

    Tensors of ``source`` that are not trained but belong to the checkpoint, such as layers for
    multi-token prediction, are taken over as they are there. Every rank calls it; rank 0 writes.
    The directory appears when it is complete.
    """
    table = state.family.parameters(state.hf_config)

    def write(buckets: Iterator[Bucket]) -> None:
        trained = (item for bucket in buckets for item in bucket)
        carried = CarriedTensors(source, table)
        write_hf(
            directory,
            chain(trained, carried),
            source=source,
            expected=(*table.hf_tensors, *carried.names),
            config_changes=classifier_config(state.hf_config) if state.value_head else None,
        )

    on_ranks(state, (0,), write, bucket_bytes=BUCKET_BYTES)


@dataclass(frozen=True, slots=True)
class _Holders:
    """The ranks of a pipeline stage that hold one copy of some parameters between them."""

    group: Any
    first: bool
    """Whether theirs is the copy that is written, of those the data-parallel ranks have."""

    @classmethod
    def of(cls, *, expert: bool) -> "_Holders":
        """This rank's, of parts that are divided over expert-parallel or tensor-parallel ranks."""
        state: Any = parallel_state
        if expert and divided_experts():
            group = state.get_expert_tensor_and_model_parallel_group()
            return cls(group, state.get_expert_data_parallel_rank() == 0)
        replica = state.get_data_parallel_rank(with_context_parallel=True)
        return cls(state.get_tensor_model_parallel_group(), replica == 0)

    @property
    def size(self) -> int:
        """How many ranks."""
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This one's place."""
        return dist.get_rank(self.group)


def _gather(
    run: list[Piece],
    plan: ExportPlan,
    holders: _Holders,
    device: torch.device,
    *,
    everywhere: bool,
) -> Tensor | None:
    """The byte vectors of all holders, [ranks, bytes], where they are wanted."""
    rows = torch.empty(holders.size * row_bytes(run), dtype=torch.uint8, device=device)
    if run[0].stage == parallel_state.get_pipeline_model_parallel_rank():
        row = pack(run, [plan.part(piece) for piece in run])
        dist.all_gather_into_tensor(rows, row, group=holders.group)
    if not everywhere and holders.rank != 0:
        return None
    stages: Any = parallel_state.get_pipeline_model_parallel_group()
    if dist.get_world_size(stages) > 1:
        dist.broadcast(rows, src=dist.get_global_rank(stages, run[0].stage), group=stages)
    return rows.view(holders.size, -1) if everywhere or dist.get_rank() == 0 else None
