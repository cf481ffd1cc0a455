"""How far the policy that drew the tokens is from the one the trainer computes.

With d_t = log p_train - log p_behaviour of tokens that the behaviour policy drew; every quantity
is a vector of tokens whose mean is the number of that name.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from slime_core.batch import LocalTokens
from slime_core.interfaces import Reduce
from slime_core.losses.ratio import ratio_of
from slime_core.losses.report import MEAN_RATIO, MEAN_SQUARE
from slime_core.losses.sequence import sample_mean, sample_sums

Vector = Float[Tensor, " tokens"]


@torch.no_grad()
def mismatch_metrics(
    train: Vector, behaviour: Vector, tokens: LocalTokens, context: Reduce
) -> dict[str, Tensor]:
    """Divergences and perplexities, per token; those of a response are given to all its tokens.

    Only entries at trained tokens mean anything.

        mismatch_kl       -d                  KL(behaviour || train), unbiased
        mismatch_k3       exp(d) - 1 - d      the same, never negative
        training_ppl      exp(-mean_t log p_train), rollout_ppl likewise
        log_ppl_diff      mean_t -d,          its absolute value, and ppl_ratio = exp of it
        chi2_token        exp(d)^2 - 1        chi-square of one token
        chi2_seq          exp(2 sum_t d) - 1  of a whole response
        is_ratio_ess      made of the mean and the mean square of exp(d), when those are merged

    Source: Schulman, Approximating KL Divergence, 2020; the chi-square divergence of importance
    weights: Metelli et al., arXiv:1809.06098; names: the mismatch helper of upstream's examples.
    """
    drift = train - behaviour
    ratio = ratio_of(drift)

    def each_mean(x: Tensor) -> Tensor:
        return sample_mean(x, tokens, context)[tokens.sample]

    gap = each_mean(-drift)
    total = sample_sums(drift, tokens, context)[tokens.sample]
    return {
        "mismatch_kl": -drift,
        "mismatch_k3": ratio - 1 - drift,
        "training_log_ppl": each_mean(-train),
        "rollout_log_ppl": each_mean(-behaviour),
        "training_ppl": torch.exp(each_mean(-train)),
        "rollout_ppl": torch.exp(each_mean(-behaviour)),
        "log_ppl_diff": gap,
        "log_ppl_abs_diff": gap.abs(),
        "ppl_ratio": ratio_of(gap),
        "chi2_token": ratio.square() - 1,
        "chi2_seq": ratio_of(2 * total) - 1,
        MEAN_RATIO: ratio,
        MEAN_SQUARE: ratio.square(),
    }
