"""Steps of ragged samples drawn by hypothesis, and the ways to cut them over ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from slime_core.batch import LocalTokens, TrainBatch
from slime_core.batch import Ragged as Rows
from slime_core.config.algorithm import Aggregation
from slime_core.losses.aggregate import denominators, step_divisor
from slime_core.schedule.plan import StepCounts
from torch import Tensor

from slime_testing.loss_case import make_tokens


@dataclass(frozen=True)
class Ragged:
    """The responses of one step: what is trained on, and numbers for the rest."""

    masks: tuple[tuple[float, ...], ...]
    """Per sample."""
    rollouts: tuple[int, ...]
    """Which execution each sample was cut from."""
    seed: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the responses."""
        return tuple(len(mask) for mask in self.masks)

    def tokens(self, denominators: Sequence[float] | float = 1.0) -> LocalTokens:
        """All of it on one rank, in one microbatch."""
        flat = [flag for mask in self.masks for flag in mask]
        return make_tokens(self.lengths, mask=flat, denominators=denominators)

    def vectors(self, *names: str, spread: float = 0.5) -> dict[str, Tensor]:
        """Log-probabilities that differ by about ``spread``; generic, so that no two tie."""
        draw = torch.Generator().manual_seed(self.seed)
        size = sum(self.lengths)
        around = torch.randn(size, generator=draw, dtype=torch.float64) - 3
        return {
            name: around + spread * torch.randn(size, generator=draw, dtype=torch.float64)
            for name in names
        }

    def batch(self) -> TrainBatch:
        """What collation makes of it; rewards are 0."""
        count = len(self.masks)
        trained = torch.tensor([sum(mask) for mask in self.masks])
        rollouts = torch.tensor(self.rollouts).long()
        totals = [float(trained[rollouts == r].sum()) for r in self.rollouts]
        return TrainBatch(
            tokens=Rows.from_lists([[0] * len(mask) for mask in self.masks], torch.long),
            response_lengths=torch.tensor(self.lengths).long(),
            loss_mask=Rows.from_lists(self.masks, torch.float32),
            rewards=torch.zeros(count),
            raw_rewards=torch.zeros(count),
            truncated=torch.zeros(count, dtype=torch.bool),
            sample_ids=torch.arange(count),
            group_ids=torch.zeros(count).long(),
            rollout_ids=rollouts,
            rollout_token_counts=torch.tensor(totals),
        )

    def whole(
        self, aggregation: Aggregation, *, constant: float = 7.0
    ) -> tuple[LocalTokens, float]:
        """All tokens with their denominators, and what the step divides by."""
        batch = self.batch()
        below = denominators(batch, aggregation, constant=constant).double()
        tokens = self.tokens(torch.repeat_interleave(below, batch.response_lengths).tolist())
        trained = float(batch.loss_mask.values.sum())
        counts = StepCounts(len(set(self.rollouts)), len(self.masks), trained)
        return tokens, step_divisor(counts, aggregation)

    def part(self, whole: LocalTokens, rows: Sequence[int]) -> tuple[LocalTokens, Tensor]:
        """The microbatch of ``rows`` in that order, and where its tokens stand in the step."""
        places = torch.cat(
            [
                torch.zeros(0).long(),
                *(torch.arange(sum(self.lengths)).split(self.lengths)[r] for r in rows),
            ]
        )
        tokens = make_tokens([self.lengths[r] for r in rows])
        picked = replace(tokens, mask=whole.mask[places], denominators=whole.denominators[places])
        return picked, places


@st.composite
def ragged(draw, *, min_samples: int = 0, max_samples: int = 6, pairs: bool = False) -> Ragged:
    """Samples of one to five tokens, some with nothing to train on, some cut from one execution."""
    count = draw(st.integers(min_samples, max_samples)) * (2 if pairs else 1)
    row = st.lists(st.sampled_from([1.0, 1.0, 0.0]), min_size=1, max_size=5).map(tuple)
    masks = tuple(draw(row) for _ in range(count))
    if pairs:
        rollouts = tuple(i // 2 for i in range(count))
    else:
        rollouts = tuple(draw(st.integers(0, 3)) for _ in range(count))
    return Ragged(masks, rollouts, draw(st.integers(0, 2**16)))


@dataclass(frozen=True)
class Cut:
    """Which rank takes which samples in which microbatch, and which tokens of those."""

    microbatches: tuple[tuple[tuple[int, ...], ...], ...]
    """[data rank][microbatch] rows, in order; empty ones among them."""
    num_context: int
    seed: int

    def holders(self, size: int, salt: int) -> list[Tensor]:
        """Places of a microbatch's tokens, by context rank, in any order."""
        draw = torch.Generator().manual_seed(self.seed + salt)
        owner = torch.randint(0, self.num_context, (size,), generator=draw)
        order = torch.randperm(size, generator=draw)
        return [order[owner[order] == rank] for rank in range(self.num_context)]


@st.composite
def cuts(draw, units: Sequence[Sequence[int]], num_data: int, num_context: int) -> Cut:
    """Any split of ``units`` (rows that stay together) over ranks and microbatches, any order."""
    order = draw(st.permutations(range(len(units)))) if units else []
    home = [draw(st.tuples(st.integers(0, num_data - 1), st.integers(0, 1))) for _ in order]
    rows: Mapping[tuple[int, int], list[int]] = {
        (rank, micro): [] for rank in range(num_data) for micro in range(2)
    }
    for unit, where in zip(order, home, strict=True):
        rows[where].extend(draw(st.permutations(units[unit])))
    return Cut(
        tuple(tuple(tuple(rows[rank, m]) for m in range(2)) for rank in range(num_data)),
        num_context,
        draw(st.integers(0, 2**16)),
    )
