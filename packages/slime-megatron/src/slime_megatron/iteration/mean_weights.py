"""What --tis-batch-normalize divides importance weights by."""

from collections.abc import Sequence

import torch
from slime_core.batch import LocalTokens
from slime_core.losses.corrections import weight_sums
from slime_core.reduce import LocalReduce
from torch import Tensor

from slime_megatron.iteration.objective import Objective
from slime_megatron.iteration.passes import Passes
from slime_megatron.iteration.signals import IterationInput, Vectors


def mean_weights(
    passes: Passes, inputs: IterationInput, vectors: Vectors, objective: Objective
) -> list[float]:
    """Of each step the mean importance weight over the tokens of all its ranks; 1 without the flag.

    Computed from whole responses, so that it depends neither on microbatches nor on how a response
    is shared out.
    """
    if not (objective.off_policy.tis_batch_normalize and objective.kind == "policy_loss"):
        return [1.0] * len(inputs.steps)
    behaviour = vectors.behaviour_log_probs or vectors.rollout_log_probs
    assert vectors.old_log_probs is not None, "asked for by Objective.needs_own_scores"
    assert behaviour is not None, "--tis-batch-normalize without the engines' log-probabilities"
    train, drawn, masks = (
        ragged.split() for ragged in (vectors.old_log_probs, behaviour, vectors.mask)
    )
    means: list[float] = []
    for step in inputs.steps:
        rows = [row for microbatch in step.microbatches for row in microbatch]
        tokens = _whole_responses([masks[row] for row in rows])
        sums = weight_sums(
            _joined([train[row] for row in rows]),
            _joined([drawn[row] for row in rows]),
            tokens,
            objective.off_policy,
            LocalReduce(),
        )
        total, count = passes.data.sum(sums.double()).tolist()
        means.append(total / count if total > 0 else 1.0)
    return means


def _whole_responses(masks: Sequence[Tensor]) -> LocalTokens:
    mask = _joined(masks)
    lengths = torch.tensor([m.numel() for m in masks], dtype=torch.long)
    return LocalTokens(
        mask=mask,
        denominators=torch.ones_like(mask),
        sample=torch.repeat_interleave(torch.arange(len(masks)), lengths),
        position=torch.arange(mask.numel()),
        response_lengths=tuple(lengths.tolist()),
    )


def _joined(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(rows)) if rows else torch.zeros(0)
