"""Freeze finished samples into a ``TrainBatch``; the only place where this happens."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from slime_core.batch import Ragged, TrainBatch
from slime_core.config.algorithm import AdvantageConfig, ShapingConfig
from slime_core.errors import ConfigError, SampleError
from slime_core.rewards import grouping_of, normalize, raw_rewards, rollout_ids
from slime_core.scores import is_broken
from slime_core.shaping import is_active, penalties
from slime_core.types import Sample, SampleGroup, Status

PostProcess = Callable[[Sequence[Sample]], tuple[Sequence[float], Sequence[float]]]
"""Samples -> (raw rewards, rewards to learn from)."""
_NO_NUMBER = (TypeError, ValueError, OverflowError)
"""What is raised by a value that is no number; by an array of several, a tensor, a huge integer."""


def collate(  # noqa: PLR0913 -- three independent choices about the same samples
    groups: Sequence[SampleGroup],
    *,
    reward_key: str | None,
    advantage: AdvantageConfig,
    post_process: PostProcess | None = None,
    shaping: ShapingConfig | None = None,
    max_response_len: int | None = None,
    version: int | None = None,
    max_token_staleness: int | None = None,
) -> TrainBatch:
    """Every sample of ``groups`` as one row, in order.

    Samples that failed or were aborted stay as rows, so that counts of rollouts hold, but none of
    their tokens is trained on. A field some samples lack is an error, unless those have nothing to
    train on. ``shaping`` changes what is learnt from, not ``raw_rewards``. Tokens that weights
    older than ``version - max_token_staleness`` wrote are not trained on (see ``fresh``).

    Raises:
        SampleError: naming the sample and the field that is wrong.
    """
    pairs = [(group.group_index, sample) for group in groups for sample in group.samples]
    samples = [sample for _, sample in pairs]
    if not samples:
        raise SampleError("there are no samples to collate")
    for sample in samples:
        _check(sample)
    _check_prompts(groups)
    _check_rollouts(groups)
    if post_process is None:
        raw, rewards = _rewards(groups, advantage, reward_key, shaping, max_response_len)
    else:
        _refuse_shaping(shaping)
        raw, rewards = post_process(samples)
    oldest = _oldest(version, max_token_staleness)
    masks = [_mask(sample, oldest) for sample in samples]
    rollouts = rollout_ids(samples)
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
        rollout_ids=torch.tensor(rollouts),
        rollout_token_counts=token_counts(rollouts, masks),
        rollout_log_probs=_response_aligned(samples, masks, "rollout_log_probs"),
        teacher_log_probs=_response_aligned(samples, masks, "teacher_log_probs"),
    )


def fresh(sample: Sample, oldest: int) -> list[int]:
    """R flags: 0 for the tokens that weights of a version before ``oldest`` wrote.

    Tokens without a version (-1: a tool's) are not stale. A sample without ``token_versions`` was
    written by the one entry of ``weight_versions``, if there is exactly one and it is a number; of
    others nothing is known, and nothing is stale.
    """
    return [int(v < 0 or v >= oldest) for v in _versions(sample)]


def _versions(sample: Sample) -> list[int]:
    if sample.token_versions is not None:
        return sample.token_versions
    whole = sample.weight_versions
    known = len(whole) == 1 and whole[0].isdecimal()
    return [int(whole[0]) if known else -1] * sample.response_length


def num_stale_tokens(
    samples: Sequence[Sample], *, version: int | None, max_token_staleness: int | None
) -> int:
    """Tokens that would be trained on if ``collate`` did not find them too old."""
    oldest = _oldest(version, max_token_staleness)
    if oldest is None:
        return 0
    return sum(sum(_mask(sample, None)) - sum(_mask(sample, oldest)) for sample in samples)


def age_metrics(
    samples: Sequence[Sample],
    *,
    version: int,
    max_token_staleness: int | None,
    num_wasted: float | None = None,
) -> dict[str, float]:
    """How old the tokens are that would be trained on if none of them were too old.

    rollout/staleness_{mean,max}  by how much ``version`` is above the one that wrote a token
    rollout/num_stale_tokens      those that are too old, if there is a bound
    rollout/num_wasted_tokens     ``num_wasted``, where it is known, and those
    """
    metrics: dict[str, float] = {}
    ages = [
        version - written_by
        for sample in samples
        for flag, written_by in zip(_mask(sample, None), _versions(sample), strict=False)
        if flag and written_by >= 0
    ]
    if ages:
        metrics["rollout/staleness_mean"] = sum(ages) / len(ages)
        metrics["rollout/staleness_max"] = float(max(ages))
    stale = num_stale_tokens(samples, version=version, max_token_staleness=max_token_staleness)
    if max_token_staleness is not None:
        metrics["rollout/num_stale_tokens"] = float(stale)
    if num_wasted is not None:
        metrics["rollout/num_wasted_tokens"] = num_wasted + stale
    return metrics


def _check(sample: Sample) -> None:
    sample.validate()
    if sample.response_length and not sample.prompt_length:
        raise SampleError(
            f"sample {sample.index}: all {sample.response_length} `tokens` are response; the first "
            "of them has no probability without at least one prompt token"
        )
    odd = next((flag for flag in sample.loss_mask or () if flag not in (0, 1)), None)
    if odd is not None:
        raise SampleError(
            f"sample {sample.index}: `loss_mask` has the entry {odd}: give 1 for tokens that are "
            "trained on and 0 for others (a token cannot weigh more, or less, than another)"
        )


def _check_prompts(groups: Sequence[SampleGroup]) -> None:
    """A group may come in pieces; answers to different prompts are not compared."""
    prompts: dict[int, object] = {}
    for group in groups:
        if group.samples and prompts.setdefault(group.group_index, group.samples[0].prompt) != (
            group.samples[0].prompt
        ):
            raise SampleError(
                f"two groups have the `group_index` {group.group_index} and different prompts: it "
                "is the number of one prompt, whose answers are compared with each other. Leave it "
                "None, or number prompts through the whole run"
            )


def _check_rollouts(groups: Sequence[SampleGroup]) -> None:
    """A rollout is one execution for one prompt; its tokens share a denominator."""
    owner: dict[int, int] = {}
    for group in groups:
        for sample in group.samples:
            if sample.rollout_id is None:
                continue
            first = owner.setdefault(sample.rollout_id, group.group_index)
            if first != group.group_index:
                raise SampleError(
                    f"`rollout_id` {sample.rollout_id} occurs in the groups {first} and "
                    f"{group.group_index}: it is the number of one execution, which answers one "
                    "prompt. Leave it None, or number executions through the whole batch"
                )


def _refuse_shaping(shaping: ShapingConfig | None) -> None:
    if shaping is not None and is_active(shaping):
        raise ConfigError(
            "--custom-reward-post-process-path returns the rewards to learn from, which leaves "
            "--overlong-buffer-len and --length-penalty-type nothing to change: drop one"
        )


def _rewards(
    groups: Sequence[SampleGroup],
    advantage: AdvantageConfig,
    reward_key: str | None,
    shaping: ShapingConfig | None,
    max_response_len: int | None,
) -> tuple[list[float], list[float]]:
    """Rewards as given, and as learnt from."""
    samples = [sample for group in groups for sample in group.samples]
    raw = raw_rewards(samples, advantage, reward_key=reward_key)
    added = None
    if shaping is not None and is_active(shaping):
        lengths = torch.tensor([sample.response_length for sample in samples])
        given = torch.tensor(raw, dtype=torch.float64)
        found = penalties(given, lengths, grouping_of(groups), shaping, max_response_len)
        added = found.tolist()
    return raw, normalize(groups, advantage, reward_key=reward_key, penalties=added)


def _oldest(version: int | None, max_token_staleness: int | None) -> int | None:
    """The oldest weights whose tokens are trained on; None for all."""
    if max_token_staleness is None:
        return None
    assert version is not None, "--max-token-staleness without the version that is trained"
    return version - max_token_staleness


def _mask(sample: Sample, oldest: int | None) -> list[int]:
    """Which response tokens are trained on; none when there is no reward to train with."""
    if is_broken(sample) or sample.reward is None:
        return [0] * sample.response_length
    mask = sample.response_mask
    if oldest is None:
        return mask
    return [flag * recent for flag, recent in zip(mask, fresh(sample, oldest), strict=True)]


def token_counts(
    rollout_ids: Sequence[int], masks: Sequence[Sequence[float | int]]
) -> torch.Tensor:
    """For every sample the trained tokens of its whole rollout."""
    counts: dict[int, float | int] = {}
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
        _refuse_infinite(sample, mask, name, row or [])
        filled.append([0.0] * sample.response_length if row is None else row)
    return Ragged.from_lists(filled, torch.float32)


def _is_number(value: Any) -> bool:
    try:
        math.isfinite(value)
    except _NO_NUMBER:
        return False
    return True


def _refuse_infinite(sample: Sample, mask: Sequence[int], name: str, row: Sequence[Any]) -> None:
    try:
        if all(map(math.isfinite, row)):
            return
    except _NO_NUMBER:
        other = next(value for value in row if not _is_number(value))
        raise SampleError(
            f"sample {sample.index}: `{name}` holds {other!r:.80}: give one number per token"
        ) from None
    for position, (flag, value) in enumerate(zip(mask, row, strict=True)):
        if flag and not math.isfinite(value):
            raise SampleError(
                f"sample {sample.index}: `{name}` is {value} at response token {position}, which "
                "is trained on: give a finite number, or mask the token with `loss_mask`"
            )
