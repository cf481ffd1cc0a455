"""Cut a batch into optimizer steps, microbatches and data-parallel shares."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from slime_core.batch import TrainBatch
from slime_core.config.batch import BatchConfig
from slime_core.errors import ConfigError
from slime_core.schedule.flops import USUAL, ModelCost, workload
from slime_core.schedule.layout import ParallelLayout
from slime_core.schedule.packing import Bins, balance, even_fit, first_fit, split_to

Rows = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What a step holds over all ranks: what a mean may divide by."""

    num_rollouts: int
    """Executions."""
    num_samples: int
    num_tokens: float
    """Trained tokens."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer update of all ranks."""

    microbatches: tuple[tuple[Rows, ...], ...]
    """[dp rank][microbatch] -> rows of the batch. Every rank has as many; when samples are fewer
    than that needs, some are empty, and their rank runs padding so that collectives still pair."""
    counts: StepCounts


@dataclass(frozen=True, slots=True)
class RankStep:
    """One rank's share of a ``Step``; indices count within the rows that rank is sent."""

    microbatches: tuple[Rows, ...]
    counts: StepCounts


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Every step of one iteration; made by ``plan``, read-only, crosses processes."""

    steps: tuple[Step, ...]
    num_dropped: int
    """Samples in no step, because the rollouts are not a multiple of the global batch."""

    def rows(self, dp_rank: int) -> Rows:
        """The batch rows a rank is sent, in the order it uses them."""
        shares = [step.microbatches[dp_rank] for step in self.steps]
        return tuple(row for share in shares for rows in share for row in rows)

    def for_rank(self, dp_rank: int) -> tuple[RankStep, ...]:
        """The plan of one rank, relative to ``rows(dp_rank)``."""
        steps: list[RankStep] = []
        start = 0
        for step in self.steps:
            microbatches: list[Rows] = []
            for rows in step.microbatches[dp_rank]:
                microbatches.append(tuple(range(start, start + len(rows))))
                start += len(rows)
            steps.append(RankStep(tuple(microbatches), step.counts))
        return tuple(steps)


def plan(
    batch: TrainBatch,
    layout: ParallelLayout,
    config: BatchConfig,
    *,
    whole_rollouts: bool = False,
    cost: ModelCost = USUAL,
) -> StepPlan:
    """Decide which rank trains on which sample in which microbatch of which step.

    A step holds ``--global-batch-size`` rollouts in order of appearance; the segments of one
    rollout are never parted. Microbatches hold ``--micro-batch-size`` samples, or as many as fit
    into ``--max-tokens-per-gpu`` tokens per context-parallel rank; what alone is too long has one
    to itself. With ``whole_rollouts`` the segments of a rollout also share a microbatch, however
    small that is meant to be. Work is measured by ``cost`` with --balance-by-flops, else in tokens.
    """
    rollouts = _rollouts(batch.rollout_ids.tolist())
    size = config.global_batch_size
    if not 1 <= size <= len(rollouts):
        raise ConfigError(
            f"--global-batch-size is {size} but the iteration holds {len(rollouts)} rollouts, not "
            "enough for one step: lower it, or raise --rollout-batch-size or "
            "--n-samples-per-prompt"
        )
    lengths: list[int] = batch.tokens.lengths.tolist()
    weights = workload(lengths, cost) if config.balance_by_flops else [float(x) for x in lengths]
    trained = [float(mask.sum()) for mask in batch.loss_mask.split()]
    steps: list[Step] = []
    for start in range(0, len(rollouts) - size + 1, size):
        chosen = rollouts[start : start + size]
        rows = sorted(row for rollout in chosen for row in rollout)
        pieces = chosen if whole_rollouts else [[row] for row in rows]
        shares = share(pieces, lengths, weights, layout, config)
        microbatches = tuple(tuple(map(tuple, bins)) for bins in shares)
        counts = StepCounts(size, len(rows), math.fsum(trained[row] for row in rows))
        steps.append(Step(microbatches, counts))
    kept = sum(step.counts.num_samples for step in steps)
    return StepPlan(tuple(steps), batch.num_samples - kept)


def share(
    pieces: Sequence[Sequence[int]],
    lengths: Sequence[int],
    weights: Sequence[float],
    layout: ParallelLayout,
    config: BatchConfig,
) -> list[Bins]:
    """[dp rank][microbatch] -> rows: those of ``pieces``, each of them in one microbatch.

    ``lengths`` and ``weights`` are those of all rows. Every rank gets as many microbatches.
    """
    tokens = [sum(lengths[row] for row in piece) for piece in pieces]
    work = [math.fsum(weights[row] for row in piece) for piece in pieces]
    cut = _dynamic if config.use_dynamic_batch_size else _static
    largest = max(map(len, pieces))
    shares = cut(tokens, work, layout, config, largest)
    return [[sorted(row for i in bin_ for row in pieces[i]) for bin_ in bins] for bins in shares]


def _rollouts(rollout_ids: Sequence[int]) -> list[list[int]]:
    """Rows of each rollout, in order of first appearance."""
    rows: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollout_ids):
        rows.setdefault(rollout, []).append(row)
    return list(rows.values())


def _dynamic(
    tokens: Sequence[int],
    work: Sequence[float],
    layout: ParallelLayout,
    config: BatchConfig,
    _largest: int,
) -> list[Bins]:
    """As few microbatches as first fit needs; with --balance-data the busiest rank does least."""
    if config.max_tokens_per_gpu is None:
        raise ConfigError("--use-dynamic-batch-size needs --max-tokens-per-gpu")
    limit = config.max_tokens_per_gpu * layout.cp
    packed = first_fit(tokens, limit)
    each = _per_rank(len(packed), layout)
    microbatches = [split_to(packed, work, layout.dp * each)]
    if config.balance_data:
        even = even_fit(tokens, work, limit, layout.dp * each)
        microbatches += [] if even is None else [even]
    shares = [
        _deal(bins, [_sum(bin_, work) for bin_ in bins], layout.dp, config) for bins in microbatches
    ]
    if config.balance_data:
        direct = _ranks_first(tokens, work, limit, layout.dp, each)
        shares += [] if direct is None else [direct]
    return min(shares, key=lambda ranks: _busiest(ranks, work))


def _ranks_first(
    tokens: Sequence[int], work: Sequence[float], limit: int, dp: int, each: int
) -> list[Bins] | None:
    """Equal work for every rank, then ``each`` microbatches of it; None if some rank needs more."""
    ranks = even_fit(tokens, work, limit * each, dp)
    if ranks is None:
        return None
    shares: list[Bins] = []
    for rank in ranks:
        packed = first_fit([tokens[i] for i in rank], limit)
        if len(packed) > each:
            return None
        bins = split_to(packed, [work[i] for i in rank], each)
        shares.append([[rank[i] for i in bin_] for bin_ in bins])
    return shares


def _busiest(ranks: Sequence[Bins], work: Sequence[float]) -> float:
    return max(math.fsum(_sum(bin_, work) for bin_ in bins) for bins in ranks)


def _sum(bin_: Sequence[int], work: Sequence[float]) -> float:
    return math.fsum(work[i] for i in bin_)


def _static(
    tokens: Sequence[int],
    work: Sequence[float],
    layout: ParallelLayout,
    config: BatchConfig,
    largest: int,
) -> list[Bins]:
    """``--micro-batch-size`` samples, or one piece if that has more."""
    shares = _deal([[i] for i in range(len(tokens))], work, layout.dp, config)
    ranks = [[i for bin_ in rank for i in bin_] for rank in shares]
    most = max(len(rank) for rank in ranks)
    at_once = max(1, config.micro_batch_size // largest)
    count = layout.microbatch_multiple * math.ceil(
        math.ceil(most / at_once) / layout.microbatch_multiple
    )
    return [_cut(rank, count) for rank in ranks]


def _per_rank(num_bins: int, layout: ParallelLayout) -> int:
    multiple = layout.microbatch_multiple
    return multiple * math.ceil(math.ceil(num_bins / layout.dp) / multiple)


def _deal(bins: Bins, weights: Sequence[float], dp: int, config: BatchConfig) -> list[Bins]:
    """Give every rank as many bins, give or take one; of equal weight if that is asked for."""
    if config.balance_data:
        shares = balance(weights, dp, equal_counts=True)
    else:
        shares = [list(range(rank, len(bins), dp)) for rank in range(dp)]
    return [[bins[b] for b in share] for share in shares]


def _cut(rank: Sequence[int], count: int) -> Bins:
    """``count`` runs of consecutive positions whose sizes differ by at most one."""
    edges = [len(rank) * part // count for part in range(count + 1)]
    return [list(rank[a:b]) for a, b in itertools.pairwise(edges)]
