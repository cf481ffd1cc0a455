"""The order of one training iteration: pack, signals, advantages, steps.

Plain vectors and the verbs of ``Passes``; which ranks and which kernels is not decided here.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from slime_core.advantages import estimate
from slime_core.advantages.custom import CustomAdvantages
from slime_core.batch import LocalTokens, LossInputs, PolicySignals, Ragged, Targets, TrainBatch
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.losses.aggregate import LossOutput, denominators, step_divisor, weighted_sum
from slime_core.losses.functions import LossFunctions
from slime_core.losses.policy import policy_loss
from slime_core.losses.sft import sft_loss
from slime_core.schedule.plan import RankStep
from torch import Tensor

from slime_megatron.pack import PackedMicrobatch, pack_rows
from slime_megatron.passes import Entropy, Passes, StepResult, StepSize, TrainItem


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is optimised."""

    advantage: AdvantageConfig
    policy_loss: PolicyLossConfig
    off_policy: OffPolicyConfig
    custom_advantages: CustomAdvantages | None = None
    """--custom-advantage-function-path."""
    functions: LossFunctions = field(default_factory=LossFunctions)
    """--custom-tis-function-path, --custom-pg-loss-reducer-function-path."""

    @property
    def supervised(self) -> bool:
        """Fine-tuning on given responses: no old policy, no advantages."""
        return self.policy_loss.loss_type == "sft_loss"

    @property
    def needs_reference(self) -> bool:
        """Whether a KL term compares with the reference policy."""
        in_reward = self.advantage.kl_coef != 0
        return not self.supervised and (self.policy_loss.use_kl_loss or in_reward)

    def needs_old_log_probs(self, num_steps: int) -> bool:
        """Whether the policy before the first step has to be asked.

        With a single step it is the policy being trained: its own log-probabilities, detached, are
        the very same numbers, unless the advantages need them before.
        """
        if self.supervised:
            return False
        before = self.advantage.kl_coef != 0 or self.custom_advantages is not None
        return num_steps > 1 or before or self.policy_loss.use_rollout_entropy

    @property
    def step_entropy(self) -> Entropy:
        """What steps do about entropy: always reported, trained with a coefficient."""
        if self.supervised:
            return Entropy.NONE
        return Entropy.TRAIN if self.policy_loss.entropy_coef else Entropy.REPORT


@dataclass(frozen=True, slots=True)
class RankPayload:
    """What one data-parallel rank trains on in one iteration; crosses processes."""

    batch: TrainBatch
    """This rank's rows."""
    steps: tuple[RankStep, ...]


@dataclass
class Report:
    """What happened in one iteration; numbers of the batch only on the last pipeline stage."""

    steps: list[StepResult] = field(default_factory=list[StepResult])
    rollout: dict[str, float] = field(default_factory=dict[str, float])
    """Means over the batch, without a prefix."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By stage."""
    num_tokens: float = 0.0
    """Prompt and response tokens trained on, over all ranks."""

    @contextmanager
    def timed(self, stage: str) -> Generator[None]:
        """Add the time of the block to ``stage``."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Vectors:
    """Response-aligned vectors of a batch, in its row order; what is not there is not used."""

    mask: Ragged
    denominators: Ragged
    old_log_probs: Ragged | None = None
    ref_log_probs: Ragged | None = None
    rollout_log_probs: Ragged | None = None
    advantages: Ragged | None = None
    returns: Ragged | None = None
    entropy: Ragged | None = None


def train_iteration(passes: Passes, payload: RankPayload, objective: Objective) -> Report:
    """Run every stage on one rank; all ranks together."""
    report = Report()
    batch = payload.batch
    with report.timed("data_preprocess"):
        packed = [
            [pack_rows(batch, rows, passes.layout) for rows in step.microbatches]
            for step in payload.steps
        ]
    vectors = _signals(passes, payload, packed, objective, report)
    with report.timed("actor_train"):
        for step, microbatches in zip(payload.steps, packed, strict=True):
            items = [
                TrainItem(microbatch, _Loss(passes, objective, _cut(vectors, rows, microbatch)))
                for rows, microbatch in zip(step.microbatches, microbatches, strict=True)
            ]
            report.steps.append(passes.step(items, _size(step, objective), objective.step_entropy))
    if passes.last_stage:
        _account(passes, payload, vectors, report)
    return report


def _size(step: RankStep, objective: Objective) -> StepSize:
    divisor = step_divisor(step.counts, objective.policy_loss.loss_aggregation)
    return StepSize(divisor, step.counts.num_rollouts)


def _signals(
    passes: Passes,
    payload: RankPayload,
    packed: Sequence[Sequence[PackedMicrobatch]],
    objective: Objective,
    report: Report,
) -> Vectors:
    """Everything about the batch that has to be known before the first step."""
    batch = payload.batch
    microbatches = [microbatch for step in packed for microbatch in step]
    order = [row for step in payload.steps for rows in step.microbatches for row in rows]
    assert sorted(order) == list(range(batch.num_samples)), "the steps do not cover the batch once"
    reference = old = entropy = None
    if objective.needs_reference:
        with report.timed("ref_log_probs"), passes.reference():
            found = passes.log_probs(microbatches, Entropy.NONE)
        reference = found and _by_row(found[0], order)
    if objective.needs_old_log_probs(len(payload.steps)):
        wants = objective.policy_loss.use_rollout_entropy
        with report.timed("log_probs"):
            found = passes.log_probs(microbatches, Entropy.REPORT if wants else Entropy.NONE)
        old = found and _by_row(found[0], order)
        entropy = _by_row(found[1], order) if found and wants else None
    targets = None
    if passes.last_stage and not objective.supervised:
        targets = _targets(
            passes, batch, PolicySignals(_or_zeros(old, batch), reference), objective
        )
    per_sample = denominators(
        batch,
        objective.policy_loss.loss_aggregation,
        constant=objective.policy_loss.loss_aggregation_constant or 1.0,
    )
    return Vectors(
        mask=batch.loss_mask,
        denominators=_spread(per_sample, batch),
        old_log_probs=old,
        ref_log_probs=reference,
        rollout_log_probs=None if objective.supervised else batch.rollout_log_probs,
        advantages=targets and targets.advantages,
        returns=targets and targets.returns,
        entropy=entropy,
    )


def _targets(
    passes: Passes, batch: TrainBatch, signals: PolicySignals, objective: Objective
) -> Targets:
    return estimate(
        batch,
        signals,
        objective.advantage,
        objective.policy_loss,
        passes.data,
        custom=objective.custom_advantages,
    )


def _by_row(values: Ragged, order: Sequence[int]) -> Ragged:
    """From the order in which microbatches hold samples to the rows of the batch."""
    place = {row: i for i, row in enumerate(order)}
    return values.select([place[row] for row in range(len(order))])


def _or_zeros(values: Ragged | None, batch: TrainBatch) -> Ragged:
    """Estimators that do not look at log-probabilities still want them by name."""
    return values or Ragged(torch.zeros_like(batch.loss_mask.values), batch.loss_mask.lengths)


def _spread(values: Tensor, batch: TrainBatch) -> Ragged:
    """One value per sample, repeated over its response."""
    lengths = batch.loss_mask.lengths
    return Ragged(torch.repeat_interleave(values, lengths), lengths)


@dataclass(frozen=True)
class _Tokens:
    """The vectors of one microbatch at the tokens one rank scores."""

    values: Mapping[str, Tensor]
    microbatch: PackedMicrobatch


def _cut(vectors: Vectors, rows: Sequence[int], microbatch: PackedMicrobatch) -> _Tokens:
    names = ("mask", "denominators", "old_log_probs", "ref_log_probs", "rollout_log_probs")
    values: dict[str, Tensor] = {}
    for name in (*names, "advantages"):
        ragged: Ragged | None = getattr(vectors, name)
        if ragged is not None:
            values[name] = microbatch.pick(ragged.select(rows).values)
    return _Tokens(values, microbatch)


@dataclass(frozen=True)
class _Loss:
    """The loss of one microbatch, waiting for its log-probabilities."""

    passes: Passes
    objective: Objective
    tokens: _Tokens

    def __call__(self, log_probs: Tensor, entropy: Tensor) -> LossOutput:
        """Sums over this rank's tokens."""
        objective = self.objective
        values = {name: x.to(log_probs.device) for name, x in self.tokens.values.items()}
        values.setdefault("old_log_probs", log_probs.detach())
        values.setdefault("advantages", torch.zeros_like(log_probs))
        microbatch = self.tokens.microbatch
        tokens = LocalTokens(
            mask=values.pop("mask"),
            denominators=values.pop("denominators"),
            sample=microbatch.sample.to(log_probs.device),
            position=microbatch.response_index.to(log_probs.device),
            response_lengths=microbatch.response_lengths,
        )
        inputs = LossInputs(
            tokens=tokens,
            log_probs=log_probs,
            entropy=None if objective.step_entropy is Entropy.NONE else entropy,
            **values,
        )
        if objective.supervised:
            return sft_loss(inputs)
        output = policy_loss(
            inputs,
            objective.policy_loss,
            objective.off_policy,
            self.passes.context,
            functions=objective.functions,
        )
        mean = weighted_sum(log_probs.detach(), tokens)
        return LossOutput(output.loss, {**output.metrics, LOG_PROBS: mean})


LOG_PROBS = "log_probs"
"""The trained policy's mean log-probability, reported by every step besides what the loss does."""


def _account(passes: Passes, payload: RankPayload, vectors: Vectors, report: Report) -> None:
    """Means over the whole batch of what the stages found: per rollout, then over rollouts."""
    batch = payload.batch
    counts = batch.rollout_token_counts.clamp(min=1)
    weights = vectors.mask.values.double() / torch.repeat_interleave(
        counts.double(), batch.loss_mask.lengths
    )
    named = {
        "log_probs": vectors.old_log_probs,
        "ref_log_probs": vectors.ref_log_probs,
        "rollout_log_probs": vectors.rollout_log_probs,
        "advantages": vectors.advantages,
        "returns": vectors.returns,
        "entropy": vectors.entropy,
    }
    present = {name: values for name, values in named.items() if values is not None}
    sums = [(values.values.double() * weights).sum() for values in present.values()]
    sums += [batch.rewards.double().sum(), torch.tensor(float(batch.num_samples)).double()]
    sums.append(batch.tokens.lengths.double().sum())
    *totals, rewards, samples, report.num_tokens = passes.data.sum(torch.stack(sums)).tolist()
    rollouts = sum(step.counts.num_rollouts for step in payload.steps)
    report.rollout = {
        name: total / rollouts for name, total in zip(present, totals, strict=True)
    } | {"rewards": rewards / max(samples, 1.0)}
    first = report.steps[0].metrics if report.steps else {}
    if LOG_PROBS in first:
        report.rollout.setdefault(LOG_PROBS, first[LOG_PROBS])
