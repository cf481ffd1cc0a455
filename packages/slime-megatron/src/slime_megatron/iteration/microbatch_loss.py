"""The loss of one microbatch on one rank, waiting for what the model gives for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from slime_core.batch import LocalTokens, LossInputs, PairInputs, TrainBatch, ValueInputs
from slime_core.interfaces import Reduce
from slime_core.losses.aggregate import LossOutput, weighted_sum
from slime_core.losses.policy import policy_loss
from slime_core.losses.preference import dpo_loss, reward_model_loss
from slime_core.losses.sft import sft_loss
from slime_core.losses.value import value_loss
from slime_core.transfer import sent
from torch import Tensor

from slime_megatron.iteration.objective import Objective
from slime_megatron.iteration.passes import Entropy
from slime_megatron.packing.pack import PackedMicrobatch

LOG_PROBS = "log_probs"
"""The trained policy's mean log-probability, reported by every step besides what the loss does."""


@dataclass(frozen=True)
class MicrobatchLoss:
    """Everything but the outputs of the model; calling it with them gives sums over tokens."""

    objective: Objective
    context: Reduce
    batch: TrainBatch
    rows: tuple[int, ...]
    """Of the batch."""
    microbatch: PackedMicrobatch
    vectors: Mapping[str, Tensor]
    """At the tokens this rank scores."""
    mean_weight: float = 1.0

    def to(self, device: torch.device) -> "MicrobatchLoss":
        """The same with what tokens need on ``device``, before the model has given anything."""
        vectors = {name: sent(x, device) for name, x in self.vectors.items()}
        return replace(self, vectors=vectors, microbatch=self.microbatch.to(device))

    def __call__(self, outputs: Tensor) -> LossOutput:
        """Sums over this rank's tokens."""
        placed = self.to(outputs.device)
        vectors = dict(placed.vectors)
        tokens = LocalTokens(
            mask=vectors.pop("mask"),
            denominators=vectors.pop("denominators"),
            sample=placed.microbatch.sample,
            position=placed.microbatch.response_index,
            response_lengths=self.microbatch.response_lengths,
        )
        return _LOSSES[self.objective.kind](self, outputs, tokens, vectors)


def cut(
    per_sample: Mapping[str, Sequence[Tensor]], rows: Sequence[int], microbatch: PackedMicrobatch
) -> dict[str, Tensor]:
    """The vectors of a batch at the tokens one rank scores of one microbatch."""
    found: dict[str, Tensor] = {}
    for name, samples in per_sample.items():
        whole = torch.cat([samples[row] for row in rows]) if rows else torch.zeros(0)
        found[name] = microbatch.pick(whole)
    return found


Vectors = dict[str, Tensor]
_OLD, _OF_ENGINES = "old_log_probs", "rollout_log_probs"


def _policy(
    case: MicrobatchLoss, outputs: Tensor, tokens: LocalTokens, vectors: Vectors
) -> LossOutput:
    log_probs, entropy = outputs
    objective = case.objective
    inputs = LossInputs(
        tokens=tokens,
        log_probs=log_probs,
        old_log_probs=vectors.get(_OLD, log_probs.detach()),
        advantages=vectors["advantages"],
        entropy=None if objective.step_entropy is Entropy.NONE else entropy,
        ref_log_probs=vectors.get("ref_log_probs"),
        rollout_log_probs=vectors.get(_OF_ENGINES),
        behaviour_log_probs=vectors.get("behaviour_log_probs"),
    )
    output = policy_loss(
        inputs,
        objective.policy_loss,
        objective.off_policy,
        case.context,
        functions=objective.functions,
        mean_weight=case.mean_weight,
    )
    mean = weighted_sum(log_probs.detach(), tokens)
    return LossOutput(output.loss, {**output.metrics, LOG_PROBS: mean})


def _fine_tuning(
    case: MicrobatchLoss, outputs: Tensor, tokens: LocalTokens, vectors: Vectors
) -> LossOutput:
    log_probs = outputs[0]
    unused = torch.zeros_like(log_probs)
    return sft_loss(LossInputs(tokens, log_probs, unused, unused))


def _value(
    case: MicrobatchLoss, outputs: Tensor, tokens: LocalTokens, vectors: Vectors
) -> LossOutput:
    inputs = ValueInputs(tokens, outputs[0], vectors["values"], vectors["returns"])
    return value_loss(inputs, case.objective.critic)


def _dpo(
    case: MicrobatchLoss, outputs: Tensor, tokens: LocalTokens, vectors: Vectors
) -> LossOutput:
    inputs = _pairs(case, outputs[0], tokens, vectors.get("ref_log_probs"))
    return dpo_loss(inputs, case.objective.preference, case.context)


def _reward_model(
    case: MicrobatchLoss, outputs: Tensor, tokens: LocalTokens, vectors: Vectors
) -> LossOutput:
    return reward_model_loss(_pairs(case, outputs[0], tokens, None), case.context)


def _pairs(
    case: MicrobatchLoss, scores: Tensor, tokens: LocalTokens, ref_scores: Tensor | None
) -> PairInputs:
    """Who is preferred to whom: the responses of a pair share a rollout, the better has 1."""
    rows = list(case.rows)
    return PairInputs(
        tokens=tokens,
        scores=scores,
        pair=case.batch.rollout_ids[rows].to(scores.device),
        chosen=(case.batch.raw_rewards[rows] > 0.5).to(scores.device),
        ref_scores=ref_scores,
    )


def _custom(
    case: MicrobatchLoss, outputs: Tensor, tokens: LocalTokens, vectors: Vectors
) -> LossOutput:
    """Under upstream's names; lists hold one entry per sample."""
    assert case.objective.custom_loss is not None, "checked before the start"
    rows, batch = list(case.rows), case.batch
    counts: list[int] = torch.bincount(tokens.sample, minlength=len(rows)).tolist()
    old = _OF_ENGINES if case.objective.off_policy.use_rollout_logprobs else _OLD
    listed = {name: x for name, x in vectors.items() if name != _OLD}
    listed |= {"log_probs": vectors[old], "loss_masks": tokens.mask}
    data: dict[str, Any] = {
        "unconcat_tokens": list(batch.tokens.select(rows).split()),
        "total_lengths": batch.tokens.lengths[rows].tolist(),
        "response_lengths": list(case.microbatch.response_lengths),
        "rewards": batch.rewards[rows].tolist(),
        "raw_reward": batch.raw_rewards[rows].tolist(),
        "rollout_mask_sums": batch.rollout_token_counts[rows].tolist(),
        "rows": case.microbatch.rows.to(outputs.device),
        "targets": case.microbatch.targets.to(outputs.device),
    }
    data |= {name: list(x.split(counts)) for name, x in listed.items()}
    return case.objective.custom_loss(data, outputs, tokens)


_LOSSES: Mapping[str, Callable[[MicrobatchLoss, Tensor, LocalTokens, Vectors], LossOutput]] = {
    "policy_loss": _policy,
    "sft_loss": _fine_tuning,
    "value_loss": _value,
    "dpo_loss": _dpo,
    "rm_loss": _reward_model,
    "custom_loss": _custom,
}
