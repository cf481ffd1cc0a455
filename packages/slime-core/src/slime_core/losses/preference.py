"""Learning from pairs of responses, one preferred to the other.

Both responses of a pair are in one microbatch. Every rank of ``context`` computes the same losses
from sums over whole responses; each takes its share, so that adding over ranks and microbatches
counts a pair once. Dividing by the number of pairs (rollouts) is left to the step.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from slime_core.batch import LocalTokens, PairInputs
from slime_core.config.algorithm import PreferenceConfig
from slime_core.errors import SampleError
from slime_core.interfaces import Reduce
from slime_core.losses.aggregate import LossOutput
from slime_core.losses.sequence import num_ranks, sample_mean, sample_sums

Pairs = Float[Tensor, " pairs"]


def dpo_loss(inputs: PairInputs, config: PreferenceConfig, context: Reduce) -> LossOutput:
    """Classify which response is preferred by how much likelier the policy made it.

    With s = log p - log p_ref of a whole response and x = beta (s_chosen - s_rejected):

        sigmoid    -(1 - eps) log sigmoid(x) - eps log sigmoid(-x)
        ipo        (s_chosen - s_rejected - 1 / (2 beta))^2,  s a mean over tokens
        hinge      max(0, 1 - x)

    Source: DPO, arXiv:2305.18290, eq. 7; eps, label smoothing: Mitchell, A note on DPO with noisy
    preferences, 2023; IPO, arXiv:2310.12036, eq. 17; hinge: SLiC, arXiv:2305.10425, as generalised
    by GPO, arXiv:2402.05749.
    """
    assert inputs.ref_scores is not None, "dpo_loss without reference log-probabilities"
    gain = sample_mean if config.dpo_loss_type == "ipo" else sample_sums
    scores = gain(inputs.scores - inputs.ref_scores, inputs.tokens, context)
    chosen, rejected = paired(scores, inputs)
    x = config.dpo_beta * (chosen - rejected)
    match config.dpo_loss_type:
        case "sigmoid":
            smoothing = config.dpo_label_smoothing
            losses = -(1 - smoothing) * logsigmoid(x) - smoothing * logsigmoid(-x)
        case "ipo":
            losses = (chosen - rejected - 1 / (2 * config.dpo_beta)).square()
        case "hinge":
            losses = torch.relu(1 - x)
    rewards = (config.dpo_beta * chosen, config.dpo_beta * rejected)
    return _summed(losses, *rewards, context)


def reward_model_loss(inputs: PairInputs, context: Reduce) -> LossOutput:
    """Score the preferred response higher: the score is the value at the last response token.

        L = -log sigmoid(r_chosen - r_rejected)

    Source: Bradley-Terry, as in InstructGPT, arXiv:2203.02155, eq. 1.
    """
    scores = last_scores(inputs.scores, inputs.tokens, context)
    chosen, rejected = paired(scores, inputs)
    return _summed(-logsigmoid(chosen - rejected), chosen, rejected, context)


def last_scores(
    scores: Float[Tensor, " tokens"], tokens: LocalTokens, context: Reduce
) -> Float[Tensor, " samples"]:
    """The score at each sample's last response token, found by its place in the response."""
    ends = torch.tensor(tokens.response_lengths, device=scores.device).cumsum(0) - 1
    is_last = tokens.position == ends[tokens.sample]
    zeros = torch.zeros(tokens.num_samples, dtype=scores.dtype, device=scores.device)
    at_end = torch.where(is_last, scores, torch.zeros_like(scores))
    return context.sum(zeros.index_add(0, tokens.sample, at_end))


def paired(scores: Float[Tensor, " samples"], inputs: PairInputs) -> tuple[Pairs, Pairs]:
    """(chosen, rejected) scores, pair by pair, whatever the order of the samples.

    Raises:
        SampleError: a response whose counterpart is not in the microbatch.
    """
    rows = torch.arange(inputs.pair.numel(), device=inputs.pair.device)
    sides = [rows[inputs.chosen], rows[~inputs.chosen]]
    chosen, rejected = (side[torch.argsort(inputs.pair[side])] for side in sides)
    if not torch.equal(inputs.pair[chosen], inputs.pair[rejected]):
        raise SampleError(
            f"the chosen responses of a microbatch are of pairs {inputs.pair[chosen].tolist()}, "
            f"the rejected ones of {inputs.pair[rejected].tolist()}: every pair needs one of each"
        )
    return scores[chosen], scores[rejected]


def _summed(losses: Pairs, chosen: Pairs, rejected: Pairs, context: Reduce) -> LossOutput:
    share = num_ranks(losses, context)
    loss = losses.sum() / share
    reports: Mapping[str, Tensor] = {
        "loss": losses,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margin": chosen - rejected,
        "rewards/accuracy": (chosen > rejected).to(losses.dtype),
    }
    return LossOutput(loss, {name: x.detach().sum() / share for name, x in reports.items()})
