"""Ragged tensors and the frozen batch that crosses from rollout to training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """A list of vectors stored end to end; one layout from collation to loss."""

    values: Shaped[Tensor, " tokens"]
    lengths: Int[Tensor, " samples"]

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[float | int]], dtype: torch.dtype) -> "Ragged":
        """Concatenate python lists."""
        flat = [x for row in rows for x in row]
        return cls(torch.tensor(flat, dtype=dtype), torch.tensor([len(row) for row in rows]).long())

    @classmethod
    def from_tensors(cls, rows: Sequence[Tensor]) -> "Ragged":
        """Concatenate one vector per sample; at least one row."""
        return cls(torch.cat(list(rows)), torch.tensor([row.numel() for row in rows]))

    def split(self) -> tuple[Tensor, ...]:
        """One view per sample."""
        return torch.split(self.values, self.lengths.tolist())

    def select(self, indices: Sequence[int]) -> "Ragged":
        """The rows at ``indices``, in that order."""
        rows = self.split()
        picked = [rows[i] for i in indices]
        values = torch.cat(picked) if picked else self.values[:0]
        return Ragged(values, self.lengths[list(indices)])


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Everything a rollout decides about training, as tensors on the CPU.

    Made by ``collate``, never changed, crosses processes. Row i of every field is sample i; the
    response-aligned ragged fields have ``response_lengths`` rows.
    """

    tokens: Ragged
    """Prompt then response, int64, P + R ids per sample."""
    response_lengths: Int[Tensor, " samples"]
    loss_mask: Ragged
    """R flags per sample, float32 in {0, 1}."""
    rewards: Float[Tensor, " samples"]
    """Shaped and group-normalised: what estimators read."""
    raw_rewards: Float[Tensor, " samples"]
    truncated: Bool[Tensor, " samples"]
    sample_ids: Int[Tensor, " samples"]
    group_ids: Int[Tensor, " samples"]
    rollout_ids: Int[Tensor, " samples"]
    rollout_token_counts: Float[Tensor, " samples"]
    """Trained tokens of the whole rollout a sample belongs to: the denominator of its mean."""
    rollout_log_probs: Ragged | None = None
    teacher_log_probs: Ragged | None = None

    @property
    def num_samples(self) -> int:
        """Rows."""
        return self.response_lengths.numel()

    def select(self, indices: Sequence[int]) -> "TrainBatch":
        """The samples at ``indices``, in that order: what one data-parallel rank is sent."""
        rows = list(indices)
        return TrainBatch(
            tokens=self.tokens.select(rows),
            response_lengths=self.response_lengths[rows],
            loss_mask=self.loss_mask.select(rows),
            rewards=self.rewards[rows],
            raw_rewards=self.raw_rewards[rows],
            truncated=self.truncated[rows],
            sample_ids=self.sample_ids[rows],
            group_ids=self.group_ids[rows],
            rollout_ids=self.rollout_ids[rows],
            rollout_token_counts=self.rollout_token_counts[rows],
            rollout_log_probs=self.rollout_log_probs and self.rollout_log_probs.select(rows),
            teacher_log_probs=self.teacher_log_probs and self.teacher_log_probs.select(rows),
        )


@dataclass(frozen=True, slots=True)
class PolicySignals:
    """What forward-only passes found out; response-aligned, row i is sample i."""

    log_probs: Ragged
    """Under the policy before this iteration's first step."""
    ref_log_probs: Ragged | None = None
    values: Ragged | None = None


@dataclass(frozen=True, slots=True)
class Targets:
    """What the loss is to pull towards; response-aligned."""

    advantages: Ragged
    returns: Ragged | None = None


@dataclass(frozen=True, slots=True)
class LossInputs:
    """The vectors of one microbatch on one rank, response tokens only, all of one length.

    Under context parallelism a rank holds the tokens of its chunks; per-sample sums go through
    ``Reduce``. ``sample`` says which row of the microbatch each token belongs to.
    """

    log_probs: Float[Tensor, " tokens"]
    """Of the policy being trained; carries gradient."""
    old_log_probs: Float[Tensor, " tokens"]
    advantages: Float[Tensor, " tokens"]
    mask: Float[Tensor, " tokens"]
    denominators: Float[Tensor, " tokens"]
    """What each token's contribution is divided by (see ``slime_core.losses.aggregate``)."""
    sample: Int[Tensor, " tokens"]
    num_samples: int
    entropy: Float[Tensor, " tokens"] | None = None
    ref_log_probs: Float[Tensor, " tokens"] | None = None
    rollout_log_probs: Float[Tensor, " tokens"] | None = None
