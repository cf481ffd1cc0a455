"""Everything about a batch that has to be known before the first optimizer step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from slime_core.advantages import estimate
from slime_core.batch import PolicySignals, Ragged, Targets, TrainBatch
from slime_core.losses.aggregate import denominators
from slime_core.schedule.plan import RankStep
from torch import Tensor

from slime_megatron.iteration.objective import OLD_ACTOR, REFERENCE, TEACHER, Objective
from slime_megatron.iteration.passes import Entropy, Passes
from slime_megatron.iteration.report import Report
from slime_megatron.packing.pack import PackedMicrobatch


@dataclass(frozen=True)
class Vectors:
    """Response-aligned vectors of a batch, in its row order; what is not there is not used."""

    mask: Ragged
    denominators: Ragged
    old_log_probs: Ragged | None = None
    ref_log_probs: Ragged | None = None
    teacher_log_probs: Ragged | None = None
    behaviour_log_probs: Ragged | None = None
    rollout_log_probs: Ragged | None = None
    values: Ragged | None = None
    advantages: Ragged | None = None
    returns: Ragged | None = None
    entropy: Ragged | None = None

    def per_sample(self) -> Mapping[str, Sequence[Tensor]]:
        """Those that are there, one vector per sample."""
        found: dict[str, Ragged | None] = dict(vars(self))
        return {name: ragged.split() for name, ragged in found.items() if ragged is not None}


@dataclass(frozen=True, slots=True)
class IterationInput:
    """What signals are made of, on one rank."""

    batch: TrainBatch
    steps: tuple[RankStep, ...]
    packed: Sequence[Sequence[PackedMicrobatch]]
    given: Mapping[str, Ragged]
    """From another trainer: a critic's ``values``, the actor's ``returns``."""
    iteration: int = 0

    @property
    def order(self) -> list[int]:
        """Rows of the batch in the order in which the microbatches hold them."""
        return [row for step in self.steps for rows in step.microbatches for row in rows]

    @property
    def microbatches(self) -> list[PackedMicrobatch]:
        """Of all steps."""
        return [microbatch for step in self.packed for microbatch in step]


def collect(
    passes: Passes, inputs: IterationInput, objective: Objective, report: Report
) -> Vectors:
    """Ask every policy that is needed and estimate advantages; on all ranks together."""
    batch = inputs.batch
    kept = {policy: scores_of(passes, inputs, report, policy) for policy in objective.kept_policies}
    own = entropy = None
    if objective.needs_own_scores(len(inputs.steps)):
        own, entropy = _own_scores(passes, inputs, objective, report)
    clips_against_old_actor = objective.clips_against_old_actor
    old = kept.get(OLD_ACTOR) if clips_against_old_actor else own
    rollout = batch.rollout_log_probs if objective.learns_from_samples else None
    signals = PolicySignals(
        _or_zeros(rollout if objective.off_policy.use_rollout_logprobs else old, batch),
        kept.get(REFERENCE),
        kept.get(TEACHER),
        inputs.given.get("values"),
    )
    targets, mask = _targets(passes, batch, signals, objective), batch.loss_mask
    if targets is not None and objective.postprocess is not None:
        targets, mask = objective.postprocess(inputs.iteration, batch, signals, targets)
    return Vectors(
        mask=mask,
        denominators=_denominators(batch, objective),
        old_log_probs=old,
        ref_log_probs=kept.get(REFERENCE),
        teacher_log_probs=kept.get(TEACHER) or batch.teacher_log_probs,
        behaviour_log_probs=None if clips_against_old_actor else kept.get(OLD_ACTOR),
        rollout_log_probs=rollout,
        values=inputs.given.get("values"),
        advantages=targets and targets.advantages,
        returns=targets.returns if targets else inputs.given.get("returns"),
        entropy=entropy,
    )


def scores_of(passes: Passes, inputs: IterationInput, report: Report, policy: str) -> Ragged | None:
    """Log-probabilities under the weights kept as ``policy``; None before the last stage."""
    with report.timed(f"{policy}_log_probs"), passes.using(policy):
        found = passes.scores(inputs.microbatches)
    return by_row(found[0], inputs.order) if found else None


def by_row(values: Ragged, order: Sequence[int]) -> Ragged:
    """From the order in which microbatches hold samples to the rows of the batch."""
    place = {row: i for i, row in enumerate(order)}
    return values.select([place[row] for row in range(len(order))])


def _own_scores(
    passes: Passes, inputs: IterationInput, objective: Objective, report: Report
) -> tuple[Ragged | None, Ragged | None]:
    wants = objective.policy_loss.use_rollout_entropy
    with report.timed("log_probs"):
        found = passes.scores(inputs.microbatches, Entropy.REPORT if wants else Entropy.NONE)
    if found is None:
        return None, None
    log_probs, entropy = (by_row(values, inputs.order) for values in found)
    return log_probs, entropy if wants else None


def _targets(
    passes: Passes, batch: TrainBatch, signals: PolicySignals, objective: Objective
) -> Targets | None:
    if not (passes.last_stage and objective.estimates):
        return None
    return estimate(
        batch,
        signals,
        objective.advantage,
        objective.policy_loss,
        passes.data,
        custom=objective.custom_advantages,
        distillation=objective.distillation,
    )


def _denominators(batch: TrainBatch, objective: Objective) -> Ragged:
    """One value per sample, repeated over its response."""
    constant = objective.policy_loss.loss_aggregation_constant or 1.0
    per_sample = denominators(batch, objective.aggregation, constant=constant)
    lengths = batch.loss_mask.lengths
    return Ragged(torch.repeat_interleave(per_sample, lengths), lengths)


def _or_zeros(values: Ragged | None, batch: TrainBatch) -> Ragged:
    """Estimators that do not look at log-probabilities still want them by name."""
    return values or Ragged(torch.zeros_like(batch.loss_mask.values), batch.loss_mask.lengths)
