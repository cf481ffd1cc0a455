"""Lay the samples of one microbatch end to end and say which rows predict a response token.

    samples        [p p p r r]  [p r r]                 p prompt, r response
    packed          p p p r r . p r r . | . .           . padding, | tail up to a whole multiple
    rows                ^ ^     ^ ^                     each predicts the token after it

A response token is predicted by the row before it, so the last token's row predicts nothing. Only
predicting rows ever meet the vocabulary. Under context parallelism a rank holds two chunks of each
sample (see ``zigzag``) and predicts what its rows predict; ranks together cover every
response token exactly once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from slime_core.batch import TrainBatch
from slime_core.errors import SampleError
from slime_core.schedule.plan import RankStep
from slime_core.transfer import sent
from torch import Tensor

from slime_megatron.packing.spans import Spans, causal_spans
from slime_megatron.packing.zigzag import chunk_multiple, local_positions


@dataclass(frozen=True)
class PackedMicrobatch:
    """One rank's rows of a packed microbatch; tensors on one device."""

    tokens: Int[Tensor, " local"]
    positions: Int[Tensor, " local"]
    """Of each row in its own sample."""
    spans: Spans
    """Who attends to whom; stays on the CPU."""
    rows: Int[Tensor, " scored"]
    """Local rows that predict a response token."""
    targets: Int[Tensor, " scored"]
    """The token each of them predicts."""
    sample: Int[Tensor, " scored"]
    """Which sample of the microbatch it belongs to."""
    response_index: Int[Tensor, " scored"]
    """Where the predicted token stands in the microbatch's responses laid end to end."""
    response_lengths: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        """Samples in the microbatch; 0 if it is all padding."""
        return len(self.response_lengths)

    def to(self, device: torch.device) -> "PackedMicrobatch":
        """The same with its tensors on ``device``."""
        names = ("tokens", "positions", "rows", "targets", "sample", "response_index")
        return replace(self, **{name: sent(getattr(self, name), device) for name in names})

    def pick(self, responses: Tensor) -> Tensor:
        """This rank's entries of vectors that cover all response tokens of the microbatch."""
        return responses[self.response_index]


@dataclass(frozen=True, slots=True)
class PackLayout:
    """What the padding has to suit."""

    cp_size: int = 1
    cp_rank: int = 0
    row_multiple: int = 1
    """Rows of a rank come in multiples of this: the tensor-parallel size (sequence parallelism
    divides rows by it) times --data-pad-size-multiplier."""
    reads_after: bool = False
    """Score a response token in its own row, which has seen it, instead of in the row before, which
    predicts it: so do reward models, whose score is that of the last token."""


def pack(
    tokens: Sequence[Int[Tensor, " tokens"]], response_lengths: Sequence[int], layout: PackLayout
) -> PackedMicrobatch:
    """Pack samples (prompt then response); without samples the microbatch is padding alone.

    Raises:
        SampleError: a response without a token before it, which nothing can predict.
    """
    lengths = _padded_lengths([t.numel() for t in tokens], layout)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    whole = torch.zeros(starts[-1], dtype=torch.long)
    response_index = torch.full_like(whole, -1)
    targets, sample, positions = whole.clone(), whole.clone(), whole.clone()
    done = 0
    for i, length in enumerate(lengths):
        positions[starts[i] : starts[i + 1]] = torch.arange(length)
    for i, (ids, count) in enumerate(zip(tokens, response_lengths, strict=True)):
        start, first = starts[i], starts[i] + ids.numel() - count - (not layout.reads_after)
        if count and first < start:
            raise SampleError(
                f"a sample of {ids.numel()} tokens has a response of {count}: its first response "
                "token has nothing before it; give every sample at least one prompt token"
            )
        whole[start : start + ids.numel()] = ids
        targets[first : first + count] = ids[ids.numel() - count :]
        response_index[first : first + count] = torch.arange(done, done + count)
        sample[first : first + count] = i
        done += count
    local = _local_rows(lengths, starts, layout)
    rows = (response_index[local] >= 0).nonzero()[:, 0]
    scored = local[rows]
    return PackedMicrobatch(
        tokens=whole[local],
        positions=positions[local],
        spans=causal_spans(lengths, cp_size=layout.cp_size, cp_rank=layout.cp_rank),
        rows=rows,
        targets=targets[scored],
        sample=sample[scored],
        response_index=response_index[scored],
        response_lengths=tuple(int(n) for n in response_lengths),
    )


def pack_steps(
    batch: TrainBatch, steps: Sequence[RankStep], layout: PackLayout
) -> list[list[PackedMicrobatch]]:
    """Pack every microbatch of every step, in order."""
    samples = batch.tokens.split()
    lengths: list[int] = batch.response_lengths.tolist()
    return [
        [
            pack([samples[row] for row in rows], [lengths[row] for row in rows], layout)
            for rows in step.microbatches
        ]
        for step in steps
    ]


def _padded_lengths(lengths: list[int], layout: PackLayout) -> list[int]:
    """Each sample to a whole number of chunks, then one more sequence of padding if needed."""
    multiple = chunk_multiple(layout.cp_size)
    padded = [-(-length // multiple) * multiple for length in lengths]
    whole = layout.cp_size * math.lcm(layout.row_multiple, 2 if layout.cp_size > 1 else 1)
    tail = -sum(padded) % whole if padded else whole
    return [*padded, tail] if tail else padded


def _local_rows(lengths: list[int], starts: list[int], layout: PackLayout) -> Tensor:
    """Indices into the whole packed sequence that this rank holds, in its order."""
    return torch.cat(
        [
            start + local_positions(length, cp_size=layout.cp_size, cp_rank=layout.cp_rank)
            for start, length in zip(starts, lengths, strict=False)
        ]
    )
