"""Cut a batch into optimizer steps, microbatches and data-parallel shares."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from slime_core.batch import TrainBatch
from slime_core.config.batch import BatchConfig
from slime_core.errors import ConfigError
from slime_core.schedule.flops import workload
from slime_core.schedule.layout import ParallelLayout
from slime_core.schedule.packing import Bins, balance, first_fit, split_to

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


def plan(batch: TrainBatch, layout: ParallelLayout, config: BatchConfig) -> StepPlan:
    """Decide which rank trains on which sample in which microbatch of which step.

    A step holds ``--global-batch-size`` rollouts in order of appearance; the segments of one
    rollout are never parted. Microbatches hold ``--micro-batch-size`` samples, or as many as fit
    into ``--max-tokens-per-gpu`` tokens per context-parallel rank.
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
    trained = [float(mask.sum()) for mask in batch.loss_mask.split()]
    steps: list[Step] = []
    for start in range(0, len(rollouts) - size + 1, size):
        rows = sorted(row for rollout in rollouts[start : start + size] for row in rollout)
        shares = _shares([lengths[row] for row in rows], layout, config)
        microbatches = tuple(
            tuple(tuple(rows[i] for i in bin_) for bin_ in share) for share in shares
        )
        counts = StepCounts(size, len(rows), math.fsum(trained[row] for row in rows))
        steps.append(Step(microbatches, counts))
    kept = sum(len(rows) for step in steps for share in step.microbatches for rows in share)
    return StepPlan(tuple(steps), batch.num_samples - kept)


def _rollouts(rollout_ids: Sequence[int]) -> list[list[int]]:
    """Rows of each rollout, in order of first appearance."""
    rows: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollout_ids):
        rows.setdefault(rollout, []).append(row)
    return list(rows.values())


def _shares(lengths: Sequence[int], layout: ParallelLayout, config: BatchConfig) -> list[Bins]:
    """[dp rank][microbatch] -> positions in ``lengths``."""
    weights = workload(lengths) if config.balance_by_flops else [float(x) for x in lengths]
    if config.use_dynamic_batch_size:
        if config.max_tokens_per_gpu is None:
            raise ConfigError("--use-dynamic-batch-size needs --max-tokens-per-gpu")
        bins = first_fit(lengths, config.max_tokens_per_gpu * layout.cp)
        bins = split_to(bins, weights, layout.dp * _per_rank(len(bins), layout))
        return _deal(bins, [math.fsum(weights[i] for i in b) for b in bins], layout.dp, config)
    samples = [[i] for i in range(len(lengths))]
    shares = _deal(samples, weights, layout.dp, config)
    ranks = [[i for bin_ in share for i in bin_] for share in shares]
    most = max(len(rank) for rank in ranks)
    count = layout.microbatch_multiple * math.ceil(
        math.ceil(most / config.micro_batch_size) / layout.microbatch_multiple
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
