"""Ragged tensors and the frozen batch that crosses from rollout to training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from slime_core.errors import SampleError, ShapeError


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
    """Under the engines' policy, which drew the tokens."""
    teacher_log_probs: Ragged | None = None

    @property
    def num_samples(self) -> int:
        """Rows."""
        return self.response_lengths.numel()

    def require_vocabulary(self, size: int | None) -> None:
        """Check that every token is one of a model's ``size``; None, unknown: nothing is checked.

        Others end a kernel on a GPU, or, where ranks divide the table, count as a row of zeros.

        Raises:
            SampleError: the first one that is not.
        """
        tokens = self.tokens.values
        if size is None or not (outside := (tokens < 0) | (tokens >= size)).any():
            return
        first = int(outside.nonzero()[0])
        row = int((self.tokens.lengths.cumsum(0) <= first).sum())
        at = first - int(self.tokens.lengths[:row].sum())
        raise SampleError(
            f"sample {int(self.sample_ids[row])}: `tokens[{at}]` is {int(tokens[first])}, and the "
            f"model has 0 to {size - 1} (vocab_size in its config.json): tokens are those of the "
            "tokenizer in --hf-checkpoint"
        )

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
    """Under the old policy: the weights before this iteration's first step, or with
    --keep-old-actor those that were published last."""
    ref_log_probs: Ragged | None = None
    teacher_log_probs: Ragged | None = None
    values: Ragged | None = None
    """The critic's, before its first step."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the loss is to pull towards; response-aligned."""

    advantages: Ragged
    returns: Ragged | None = None


@dataclass(frozen=True, slots=True)
class LocalTokens:
    """Which response tokens of a microbatch one rank scores; all vectors of one length.

    Under context parallelism a rank holds some tokens of every sample, in any order; sums over a
    sample go through ``Reduce`` (see ``slime_core.losses.sequence``).
    """

    mask: Float[Tensor, " tokens"]
    """What a token counts, 0 or 1."""
    denominators: Float[Tensor, " tokens"]
    """What its contribution is divided by (see ``slime_core.losses.aggregate``)."""
    sample: Int[Tensor, " tokens"]
    """Which sample of the microbatch it belongs to."""
    position: Int[Tensor, " tokens"]
    """Where it stands in the microbatch's responses laid end to end."""
    response_lengths: tuple[int, ...]
    """Of every sample of the microbatch, in full."""

    def __post_init__(self) -> None:
        """Refuse padded rows, and vectors of different lengths."""
        _require_vectors(self, ("mask", "denominators", "sample", "position"), self.mask.numel())

    @classmethod
    def of_mask(
        cls,
        mask: Shaped[Tensor, "samples longest"],
        denominators: Float[Tensor, " samples"] | None = None,
    ) -> "LocalTokens":
        """The tokens of padded responses that a single process trains on, where ``mask`` is not 0.

        They come row by row, as ``x[mask > 0]`` gives them, so a padded ``x`` of log-probabilities
        becomes a loss's vector by that, and an ``x`` of one number per response by
        ``x[tokens.sample]``. Tokens that are not trained on count for no length.

        ``denominators``: what the tokens of each response are divided by. Without them the number
        of its trained tokens, so that a loss is a sum over responses of the means of their tokens,
        to be divided by ``num_samples``; with ones, a sum over tokens, to be divided by their
        number.
        """
        if mask.ndim != 2:
            raise ShapeError(f"mask has shape {list(mask.shape)}: must be [responses, longest]")
        kept = mask > 0
        sample, lengths = kept.nonzero()[:, 0], kept.sum(dim=1)
        if denominators is None:
            denominators = lengths.float()
        if denominators.shape != lengths.shape:
            raise ShapeError(
                f"denominators have shape {list(denominators.shape)}: must be one for each of the "
                f"{len(lengths)} responses of mask, shape {list(lengths.shape)}"
            )
        return cls(
            mask=torch.ones_like(sample, dtype=torch.float32),
            denominators=denominators[sample],
            sample=sample,
            position=torch.arange(sample.numel(), device=mask.device),
            response_lengths=tuple(lengths.tolist()),
        )

    @property
    def num_samples(self) -> int:
        """Samples in the microbatch."""
        return len(self.response_lengths)


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a policy's loss is made of: one microbatch on one rank, response tokens only."""

    tokens: LocalTokens
    log_probs: Float[Tensor, " tokens"]
    """Of the policy being trained; carries gradient."""
    old_log_probs: Float[Tensor, " tokens"]
    """What the ratio is taken against."""
    advantages: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"] | None = None
    ref_log_probs: Float[Tensor, " tokens"] | None = None
    rollout_log_probs: Float[Tensor, " tokens"] | None = None
    behaviour_log_probs: Float[Tensor, " tokens"] | None = None
    """Of the kept weights that drew the tokens, when ``old_log_probs`` are newer ones'."""

    def __post_init__(self) -> None:
        """Refuse padded rows, and vectors of other tokens."""
        _require_vectors(self, _POLICY_VECTORS, self.tokens.mask.numel())


@dataclass(frozen=True, slots=True)
class ValueInputs:
    """What a critic's loss is made of."""

    tokens: LocalTokens
    values: Float[Tensor, " tokens"]
    """Of the critic being trained; carries gradient."""
    old_values: Float[Tensor, " tokens"]
    returns: Float[Tensor, " tokens"]

    def __post_init__(self) -> None:
        """Refuse padded rows, and vectors of other tokens."""
        _require_vectors(self, ("values", "old_values", "returns"), self.tokens.mask.numel())


@dataclass(frozen=True, slots=True)
class PairInputs:
    """What a loss over preferences is made of: whole pairs, one microbatch on one rank."""

    tokens: LocalTokens
    scores: Float[Tensor, " tokens"]
    """Log-probabilities of the policy (dpo_loss) or a reward model's values (rm_loss); carries
    gradient."""
    pair: Int[Tensor, " samples"]
    """Which pair each sample belongs to: every number occurs twice."""
    chosen: Bool[Tensor, " samples"]
    """Whether it is the preferred one."""
    ref_scores: Float[Tensor, " tokens"] | None = None
    """The reference policy's log-probabilities."""

    def __post_init__(self) -> None:
        """Refuse padded rows, vectors of other tokens, and pairs of other samples."""
        _require_vectors(self, ("scores", "ref_scores"), self.tokens.mask.numel())
        for name, value in (("pair", self.pair), ("chosen", self.chosen)):
            if value.shape != (self.tokens.num_samples,):
                raise ShapeError(
                    f"PairInputs.{name} has shape {list(value.shape)}: must be a vector of "
                    f"{self.tokens.num_samples}, one entry for each response of `tokens`"
                )


_POLICY_VECTORS = (
    *("log_probs", "old_log_probs", "advantages", "entropy"),
    *("ref_log_probs", "rollout_log_probs", "behaviour_log_probs"),
)


def _require_vectors(of: object, names: Sequence[str], num_tokens: int) -> None:
    """Raise ``ShapeError`` for the first field that is no vector of ``num_tokens``."""
    for name in names:
        value: Tensor | None = getattr(of, name)
        if value is not None and value.shape != (num_tokens,):
            raise ShapeError(
                f"{type(of).__name__}.{name} has shape {list(value.shape)}: must be a vector of "
                f"{num_tokens}, one entry for each token of `tokens`. Of padded tensors "
                "[responses, longest] make `tokens` by LocalTokens.of_mask(mask), a vector by "
                "x[mask > 0], and of one number per response by x[tokens.sample]"
            )
