"""Freeze finished samples into a ``TrainBatch``; the only place where this happens."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from slime_core.batch import Ragged, TrainBatch
from slime_core.config.algorithm import AdvantageConfig
from slime_core.errors import SampleError
from slime_core.rewards import normalize, reward_value
from slime_core.types import Sample, SampleGroup, Status

PostProcess = Callable[[Sequence[Sample]], tuple[Sequence[float], Sequence[float]]]
"""Samples -> (raw rewards, rewards to learn from)."""


def collate(
    groups: Sequence[SampleGroup],
    *,
    reward_key: str | None,
    advantage: AdvantageConfig,
    post_process: PostProcess | None = None,
) -> TrainBatch:
    """Every sample of ``groups`` as one row, in order.

    Samples that failed stay as rows, so that counts of rollouts hold, but none of their tokens is
    trained on. A field some samples lack is an error, unless those have nothing to train on.

    Raises:
        SampleError: naming the sample and the field that is wrong.
    """
    pairs = [(group.group_index, sample) for group in groups for sample in group.samples]
    samples = [sample for _, sample in pairs]
    if not samples:
        raise SampleError("there are no samples to collate")
    for sample in samples:
        _check(sample)
    raw, rewards = (post_process or _default(groups, reward_key, advantage))(samples)
    masks = [_mask(sample) for sample in samples]
    rollout_ids = _rollout_ids(samples)
    return TrainBatch(
        tokens=Ragged.from_lists([sample.tokens or [0] for sample in samples], torch.int64),
        response_lengths=torch.tensor([sample.response_length for sample in samples]),
        loss_mask=Ragged.from_lists(masks, torch.float32),
        rewards=torch.tensor(list(rewards), dtype=torch.float32),
        raw_rewards=torch.tensor(list(raw), dtype=torch.float32),
        truncated=torch.tensor([sample.status is Status.TRUNCATED for sample in samples]),
        sample_ids=torch.tensor(
            [row if sample.index is None else sample.index for row, sample in enumerate(samples)]
        ),
        group_ids=torch.tensor([group_index for group_index, _ in pairs]),
        rollout_ids=torch.tensor(rollout_ids),
        rollout_token_counts=_token_counts(rollout_ids, masks),
        rollout_log_probs=_response_aligned(samples, masks, "rollout_log_probs"),
        teacher_log_probs=_response_aligned(samples, masks, "teacher_log_probs"),
    )


def _check(sample: Sample) -> None:
    sample.validate()
    if sample.response_length and not sample.prompt_length:
        raise SampleError(
            f"sample {sample.index}: all {sample.response_length} `tokens` are response; the first "
            "of them has no probability without at least one prompt token"
        )


def _default(
    groups: Sequence[SampleGroup], reward_key: str | None, advantage: AdvantageConfig
) -> PostProcess:
    def rewards(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
        raw = [reward_value(sample, reward_key) or 0.0 for sample in samples]
        return raw, normalize(groups, advantage, reward_key=reward_key)

    return rewards


def _mask(sample: Sample) -> list[int]:
    """Which response tokens are trained on; none when there is no reward to train with."""
    if sample.status is Status.FAILED or sample.reward is None:
        return [0] * sample.response_length
    return sample.response_mask


def _rollout_ids(samples: Sequence[Sample]) -> list[int]:
    """Ids as given; samples without one are executions of their own."""
    used = {sample.rollout_id for sample in samples}
    free = (i for i in range(2 * len(samples) + 1) if i not in used)
    return [next(free) if s.rollout_id is None else s.rollout_id for s in samples]


def _token_counts(rollout_ids: Sequence[int], masks: Sequence[Sequence[int]]) -> torch.Tensor:
    counts: dict[int, int] = {}
    for rollout, mask in zip(rollout_ids, masks, strict=True):
        counts[rollout] = counts.get(rollout, 0) + sum(mask)
    return torch.tensor([counts[rollout] for rollout in rollout_ids], dtype=torch.float32)


def _response_aligned(
    samples: Sequence[Sample],
    masks: Sequence[Sequence[int]],
    name: Literal["rollout_log_probs", "teacher_log_probs"],
) -> Ragged | None:
    rows: list[list[float] | None] = [getattr(sample, name) for sample in samples]
    if all(row is None for row in rows):
        return None
    filled: list[list[float]] = []
    for sample, mask, row in zip(samples, masks, rows, strict=True):
        if row is None and any(mask):
            raise SampleError(f"sample {sample.index} has no `{name}` but others of its batch do")
        filled.append([0.0] * sample.response_length if row is None else row)
    return Ragged.from_lists(filled, torch.float32)
