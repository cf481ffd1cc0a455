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
from slime_convert.names import expert_of, local_name
from slime_convert.rules import Parameter
from slime_core.errors import CheckpointError
from torch import Tensor

from slime_megatron.buckets import Bucket, Piece, pack, row_bytes, split_runs, unpack_within
from slime_megatron.mcore.ranks.agreement import raise_everywhere
from slime_megatron.mcore.state import TrainState
from slime_megatron.mcore.weights.places import experts_per_rank, located
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
    local = _local_parts(state)
    mine = everywhere or dist.get_rank() in to
    for run in split_runs(_plan(state, local), bucket_bytes):
        holders = _Holders.of(expert=run[0].expert)
        if everyone or holders.first:
            rows = _gather(run, local, holders, state.device, everywhere=everyone)
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
        if expert and _divided_experts():
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


def _divided_experts() -> bool:
    """Whether routed experts lie on other ranks than the rest of the model."""
    state: Any = parallel_state
    tensor: int = state.get_tensor_model_parallel_world_size()
    divided: int = state.get_expert_model_parallel_world_size()
    return divided > 1 or state.get_expert_tensor_parallel_world_size() != tensor


def _local_parts(state: TrainState) -> dict[str, Tensor]:
    """This rank's part of every parameter that is exported, by the name of its piece."""
    table = state.family.parameters(state.hf_config)
    offset = experts_per_rank(state.chunks[0]) * parallel_state.get_expert_model_parallel_rank()
    return {
        local_name(parameter.name, expert_offset=offset): tensor.detach()
        for chunk in state.chunks
        for parameter, tensor in located(chunk, table)
        if not parameter.alias
    }


def _plan(state: TrainState, local: dict[str, Tensor]) -> list[Piece]:
    """Every parameter of the model in the order of the table, the same on every rank.

    Experts that are divided over ranks come last.
    """
    group = parallel_state.get_pipeline_model_parallel_group()
    described = {name: (part.dtype, tuple(part.shape)) for name, part in local.items()}
    stages: list[Any] = [None] * parallel_state.get_pipeline_model_parallel_world_size()
    dist.all_gather_object(stages, described, group=group)
    owners = {name: stage for stage, names in reversed(list(enumerate(stages))) for name in names}
    pieces = [(members, members[0].expert and _divided_experts()) for members in _pieces(state)]
    absent = [members[0].name for members, _ in pieces if members[0].name not in owners]
    if absent:
        raise CheckpointError(f"the model has no parameters {', '.join(absent[:20])}")
    return [
        Piece(members, owners[name], *stages[owners[name]][name], expert=expert)
        for members, expert in sorted(pieces, key=lambda piece: piece[1])
        for name in (members[0].name,)
    ]


def _pieces(state: TrainState) -> list[tuple[Parameter, ...]]:
    """The parameters that are exported; with each expert those in its place on other ranks."""
    table = state.family.parameters(state.hf_config)
    per_rank = experts_per_rank(state.chunks[0])
    pieces: dict[str, list[Parameter]] = {}
    for parameter in table.exported:
        expert = expert_of(parameter.name)
        before = 0 if expert is None else expert // per_rank * per_rank
        name = local_name(parameter.name, expert_offset=before)
        pieces.setdefault(name, []).append(parameter)
    return [tuple(members) for members in pieces.values()]


def _gather(
    run: list[Piece],
    local: dict[str, Tensor],
    holders: _Holders,
    device: torch.device,
    *,
    everywhere: bool,
) -> Tensor | None:
    """The byte vectors of all holders, [ranks, bytes], where they are wanted."""
    rows = torch.empty(holders.size * row_bytes(run), dtype=torch.uint8, device=device)
    if run[0].stage == parallel_state.get_pipeline_model_parallel_rank():
        row = pack(run, [local[piece.name] for piece in run])
        dist.all_gather_into_tensor(rows, row, group=holders.group)
    if not everywhere and holders.rank != 0:
        return None
    stages: Any = parallel_state.get_pipeline_model_parallel_group()
    if dist.get_world_size(stages) > 1:
        dist.broadcast(rows, src=dist.get_global_rank(stages, run[0].stage), group=stages)
    return rows.view(holders.size, -1) if everywhere or dist.get_rank() == 0 else None
