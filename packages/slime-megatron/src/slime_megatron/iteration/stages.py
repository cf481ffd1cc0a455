"""The order of one training iteration: pack, signals, advantages, steps.

Plain vectors and the verbs of ``Passes``; which ranks and which kernels is not decided here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from slime_core.batch import Ragged, TrainBatch
from slime_core.losses.aggregate import step_divisor
from slime_core.losses.kl import approx_kl
from slime_core.schedule.plan import RankStep, StepPlan
from torch import Tensor

from slime_megatron.iteration.mean_weights import mean_weights
from slime_megatron.iteration.microbatch_loss import LOG_PROBS, MicrobatchLoss, cut
from slime_megatron.iteration.objective import Objective
from slime_megatron.iteration.passes import Passes, StepSize, TrainItem
from slime_megatron.iteration.report import Report
from slime_megatron.iteration.signals import IterationInput, Vectors, by_row, collect
from slime_megatron.packing.pack import pack_steps

SampleVectors = Mapping[int, Tensor]
"""Row of the iteration's whole batch -> a vector of its response tokens."""

NOTHING: Mapping[str, SampleVectors] = {}


@dataclass(frozen=True, slots=True)
class RankPayload:
    """What one data-parallel rank trains on in one iteration; crosses processes."""

    batch: TrainBatch
    """This rank's rows."""
    steps: tuple[RankStep, ...]
    rows: tuple[int, ...] = ()
    """Where those rows stand in the iteration's whole batch; needed where two trainers exchange
    vectors of samples."""

    @classmethod
    def of_rank(cls, dp_rank: int, batch: TrainBatch, steps: StepPlan) -> "RankPayload":
        """This rank's part of an iteration."""
        rows = steps.rows(dp_rank)
        return cls(batch.select(rows), steps.for_rank(dp_rank), rows)

    def pick(self, vectors: SampleVectors) -> Ragged:
        """Its own rows of vectors that another trainer computed."""
        if not self.batch.num_samples:
            return Ragged(torch.zeros(0), torch.zeros(0, dtype=torch.long))
        return Ragged.from_tensors([vectors[row] for row in self.rows])

    def plain(self) -> dict[str, Any]:
        """Its fields by name, without classes of slime's: a vector for each row in a list."""
        return _plain(self)

    def named(self, vectors: Ragged) -> dict[int, Tensor]:
        """By the rows of the whole batch."""
        return dict(zip(self.rows, vectors.split(), strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Ragged):
        return [vector.clone() for vector in value.split()]
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def train_iteration(
    passes: Passes,
    payload: RankPayload,
    objective: Objective,
    *,
    iteration: int = 0,
    given: Mapping[str, SampleVectors] = NOTHING,
    updates: bool = True,
) -> tuple[Report, Vectors]:
    """Run every stage on one rank; all ranks together.

    ``given``: vectors of all samples that another trainer computed (``values``, ``returns``).
    Without ``updates`` no step is taken: what the steps would have needed is found all the same.
    """
    report = Report()
    with report.timed("data_preprocess"):
        inputs = _prepared(passes, payload, given, iteration)
    vectors = collect(passes, inputs, objective, report)
    if updates:
        with report.timed("actor_train"):
            _steps(passes, inputs, vectors, objective, report)
    if passes.last_stage:
        divergences = _divergences(vectors, objective)
        _report_batch(passes, inputs, vectors, divergences, report)
    return report, vectors


def score_iteration(passes: Passes, payload: RankPayload) -> Ragged | None:
    """What the model gives for every response token, in the rows' order; values of a critic."""
    inputs = _prepared(passes, payload, NOTHING)
    found = passes.scores(inputs.microbatches)
    return by_row(found[0], inputs.order) if found else None


def _prepared(
    passes: Passes, payload: RankPayload, given: Mapping[str, SampleVectors], iteration: int = 0
) -> IterationInput:
    inputs = IterationInput(
        batch=payload.batch,
        steps=payload.steps,
        packed=pack_steps(payload.batch, payload.steps, passes.layout),
        given={name: payload.pick(vectors) for name, vectors in given.items()},
        iteration=iteration,
    )
    covered = sorted(inputs.order) == list(range(payload.batch.num_samples))
    assert covered, "the steps do not cover the batch once"
    return inputs


def _steps(
    passes: Passes, inputs: IterationInput, vectors: Vectors, objective: Objective, report: Report
) -> None:
    weights = [1.0] * len(inputs.steps)
    if passes.last_stage:
        weights = mean_weights(passes, inputs, vectors, objective)
    per_sample = vectors.per_sample()
    for step, microbatches, weight in zip(inputs.steps, inputs.packed, weights, strict=True):
        items = [
            TrainItem(
                microbatch,
                MicrobatchLoss(
                    objective=objective,
                    context=passes.context,
                    batch=inputs.batch,
                    rows=rows,
                    microbatch=microbatch,
                    vectors=cut(per_sample, rows, microbatch),
                    mean_weight=weight,
                ),
            )
            for rows, microbatch in zip(step.microbatches, microbatches, strict=True)
        ]
        size = StepSize(step_divisor(step.counts, objective.aggregation), step.counts.num_rollouts)
        logits = objective.kind == "custom_loss"
        report.steps.append(passes.step(items, size, objective.step_entropy, logits=logits))


def _report_batch(
    passes: Passes,
    inputs: IterationInput,
    vectors: Vectors,
    divergences: Mapping[str, Ragged],
    report: Report,
) -> None:
    """Report means over the whole batch, and its tokens; all data-parallel ranks together."""
    batch = inputs.batch
    summed = _summed_rollout_means(batch, vectors, divergences)
    counted = [
        batch.rewards.double().sum(),
        torch.tensor(float(batch.num_samples)).double(),
        batch.tokens.lengths.double().sum(),
    ]
    both = torch.stack([*summed.values(), *counted])
    *sums, rewards, samples, tokens = passes.data.sum(both).tolist()
    rollouts = sum(step.counts.num_rollouts for step in inputs.steps)
    report.num_tokens = tokens
    report.rollout = {name: total / rollouts for name, total in zip(summed, sums, strict=True)}
    report.rollout["rewards"] = rewards / max(samples, 1.0)
    _add_log_probs_of_the_first_step(report)


def _divergences(vectors: Vectors, objective: Objective) -> dict[str, Ragged]:
    """Of every response token, what advantages were lowered by for each unit of its coefficient."""
    from_engines = objective.off_policy.use_rollout_logprobs
    policy = vectors.rollout_log_probs if from_engines else vectors.old_log_probs
    reference, teacher = vectors.ref_log_probs, vectors.teacher_log_probs
    found: dict[str, Ragged] = {}
    if policy is not None and reference is not None and objective.advantage.kl_coef:
        kl = approx_kl(policy.values, reference.values, objective.policy_loss.kl_loss_type)
        found["kl"] = Ragged(kl, policy.lengths)
    if policy is not None and teacher is not None and objective.distillation.use_opd:
        found["opd_reverse_kl"] = Ragged(policy.values - teacher.values, policy.lengths)
    return found


def _summed_rollout_means(
    batch: TrainBatch, vectors: Vectors, divergences: Mapping[str, Ragged]
) -> dict[str, Tensor]:
    """What the stages found: the mean over each rollout's trained tokens, summed over rollouts.

    A rollout's samples may be on several ranks: this is their part of its mean.
    """
    counts = batch.rollout_token_counts.clamp(min=1)
    weights = vectors.mask.values.double() / torch.repeat_interleave(
        counts.double(), batch.loss_mask.lengths
    )
    trained = vectors.mask.values > 0
    found: dict[str, Ragged | None] = {
        LOG_PROBS: vectors.old_log_probs,
        "ref_log_probs": vectors.ref_log_probs,
        "teacher_log_probs": vectors.teacher_log_probs,
        "rollout_log_probs": vectors.rollout_log_probs,
        "values": vectors.values,
        "advantages": vectors.advantages,
        "returns": vectors.returns,
        "entropy": vectors.entropy,
        **divergences,
    }
    return {
        name: (torch.where(trained, vector.values.double(), 0.0) * weights).sum()
        for name, vector in found.items()
        if vector is not None
    }


def _add_log_probs_of_the_first_step(report: Report) -> None:
    """They are the old policy's, as it has not changed yet: for runs without a pass of its own."""
    first = report.steps[0].metrics if report.steps else {}
    if LOG_PROBS in first:
        report.rollout.setdefault(LOG_PROBS, first[LOG_PROBS])
