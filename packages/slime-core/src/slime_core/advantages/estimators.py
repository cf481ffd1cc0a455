"""Which estimator turns the rewards of a batch into advantages per token."""

import torch
from torch import Tensor

from slime_core.advantages.custom import CustomAdvantages
from slime_core.advantages.returns import generalized, reinforce_plus_plus, terminal_reward
from slime_core.advantages.whiten import whiten
from slime_core.batch import PolicySignals, Ragged, Targets, TrainBatch
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.interfaces import Reduce
from slime_core.losses.kl import approx_kl

Vectors = list[Tensor]


def estimate(
    batch: TrainBatch,
    signals: PolicySignals,
    config: AdvantageConfig,
    policy_loss: PolicyLossConfig,
    reduce: Reduce,
    *,
    custom: CustomAdvantages | None = None,
) -> Targets:
    """Advantages of every response token of ``batch``, in full, on the rewards' device.

        grpo, gspo, cispo            A_t = r, the reward relative to its group
        reinforce_plus_plus_baseline A_t = r - kl_coef KL_t
        reinforce_plus_plus          A_t = discounted sum of -kl_coef KL, with r at the end
        ppo                          generalized advantage estimation over ``signals.values``

    With --normalize-advantages they are whitened over the trained tokens of all ranks that
    ``reduce`` adds over: the data-parallel ranks, each with its own samples. ``custom`` takes the
    estimator's place.
    Source: GRPO, arXiv:2402.03300; GSPO, arXiv:2507.18071; CISPO, arXiv:2506.13585; REINFORCE++,
    arXiv:2501.03262.
    """
    kl = _kl(batch, signals, config, policy_loss)
    returns: Vectors | None
    if custom is None:
        advantages, returns = _vectors(batch, [config.kl_coef * k for k in kl], signals, config)
    else:
        found = custom(batch, signals, kl)
        advantages, returns = found["advantages"], found["returns"]
    lengths = batch.loss_mask.lengths
    values = torch.cat(advantages) if advantages else batch.rewards[:0]
    if config.normalize_advantages:
        values = whiten(values, batch.loss_mask.values, reduce)
    return Targets(Ragged(values, lengths), Ragged.from_tensors(returns) if returns else None)


def _vectors(
    batch: TrainBatch, penalties: Vectors, signals: PolicySignals, config: AdvantageConfig
) -> tuple[Vectors, Vectors | None]:
    masks = batch.loss_mask.split()
    match config.advantage_estimator:
        case "grpo" | "gspo" | "cispo":
            return _broadcast(batch), None
        case "reinforce_plus_plus_baseline":
            return [r - k for r, k in zip(_broadcast(batch), penalties, strict=True)], None
        case "reinforce_plus_plus":
            returns = [
                reinforce_plus_plus(k, mask, reward, config.gamma)
                for k, mask, reward in zip(penalties, masks, batch.rewards, strict=True)
            ]
            return returns, None
        case "ppo":
            return _generalized(batch, penalties, signals, config)


def _broadcast(batch: TrainBatch) -> Vectors:
    lengths: list[int] = batch.response_lengths.tolist()
    return [reward.expand(n) for reward, n in zip(batch.rewards, lengths, strict=True)]


def _kl(
    batch: TrainBatch,
    signals: PolicySignals,
    config: AdvantageConfig,
    policy_loss: PolicyLossConfig,
) -> Vectors:
    """The KL estimate of each token; zeros where it has no coefficient."""
    if config.kl_coef == 0:
        return [torch.zeros_like(mask) for mask in batch.loss_mask.split()]
    assert signals.ref_log_probs is not None, "--kl-coef without reference log-probabilities"
    kl = approx_kl(signals.log_probs.values, signals.ref_log_probs.values, policy_loss.kl_loss_type)
    return list(Ragged(kl, batch.loss_mask.lengths).split())


def _generalized(
    batch: TrainBatch, penalties: Vectors, signals: PolicySignals, config: AdvantageConfig
) -> tuple[Vectors, Vectors]:
    assert signals.values is not None, "--advantage-estimator ppo without a critic's values"
    masks, values = batch.loss_mask.split(), signals.values.split()
    pairs = [
        generalized(
            terminal_reward(-k * mask, mask, reward), v, gamma=config.gamma, gae_lambda=config.lambd
        )
        for k, mask, reward, v in zip(penalties, masks, batch.rewards, values, strict=True)
    ]
    return [advantage for advantage, _ in pairs], [returns for _, returns in pairs]
