"""Metrics of a loss: summed over microbatches and ranks like the loss, means in the end.

A vector of tokens is reported as its weighted sum, together with the sum of the weights. Both add
up over microbatches and ranks; ``finish_metrics`` divides one by the other, so that a reported
number is a mean of what it names under every --loss-aggregation.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from slime_core.batch import LocalTokens
from slime_core.losses.aggregate import weighted_sum

WEIGHT = "weight"
"""The sum of the weights, among the metrics of a microbatch."""
TERMS = frozenset({"loss", "pg_loss", "value_loss"})
"""What is minimised: reported as it is summed, not as a mean."""
MEAN_RATIO, MEAN_SQUARE = "is_ratio_mean", "is_ratio_square_mean"


def token_sums(vectors: Mapping[str, Tensor], tokens: LocalTokens) -> dict[str, Tensor]:
    """Weighted sums of vectors of tokens, and of the weights."""
    ones = {WEIGHT: torch.ones_like(tokens.denominators)}
    return {name: weighted_sum(x.detach(), tokens) for name, x in {**vectors, **ones}.items()}


def finish_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Means, and what is made of means, from sums over a whole step.

        effective sample size = mean(w)^2 / mean(w^2), the share of samples that count

    Source: Kong, 1992; as used for importance weights by Owen, Monte Carlo, section 9.3.
    """
    weight = metrics.get(WEIGHT) or 1.0
    means = {
        name: value if name in TERMS else value / weight
        for name, value in metrics.items()
        if name != WEIGHT
    }
    square = means.pop(MEAN_SQUARE, None)
    if square is not None:
        means["is_ratio_ess"] = means[MEAN_RATIO] ** 2 / square if square else 0.0
    return means
