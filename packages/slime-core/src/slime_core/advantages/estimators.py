"""Which estimator turns the rewards of a batch into advantages per token."""

import torch
from torch import Tensor

from slime_core.advantages.custom import CustomAdvantages
from slime_core.advantages.distill import distilled
from slime_core.advantages.returns import generalized, reinforce_plus_plus
from slime_core.advantages.whiten import whiten
from slime_core.batch import PolicySignals, Ragged, Targets, TrainBatch
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.reference import DistillationConfig
from slime_core.errors import SampleError
from slime_core.interfaces import Reduce
from slime_core.losses.kl import approx_kl


def estimate(
    batch: TrainBatch,
    signals: PolicySignals,
    config: AdvantageConfig,
    policy_loss: PolicyLossConfig,
    reduce: Reduce,
    *,
    custom: CustomAdvantages | None = None,
    distillation: DistillationConfig | None = None,
) -> Targets:
    """Advantages of every response token of ``batch``, in full, on the rewards' device.

        grpo, gspo, cispo, rloo, remax, maxrl, gdpo
                                     A_t = r, as ``slime_core.rewards.normalize`` made it
        reinforce_plus_plus_baseline A_t = r - kl_coef KL_t
        reinforce_plus_plus          A_t = discounted sum of -kl_coef KL, with r at the end
        ppo                          generalized advantage estimation over ``signals.values``

    ``custom`` takes the estimator's place. Then, for all of them, --use-opd subtracts the
    distillation term, and --normalize-advantages whitens over the trained tokens of all ranks that
    ``reduce`` adds over: the data-parallel ranks, each with its own samples. What stands at tokens
    that are not trained on is never looked at; their advantages and returns are 0.

    Raises:
        SampleError: a trained token whose signals or advantage are not finite, naming its sample.
    Source: GRPO, arXiv:2402.03300; GSPO, arXiv:2507.18071; CISPO, arXiv:2506.13585; REINFORCE++,
    arXiv:2501.03262; GAE, arXiv:1506.02438; others: ``slime_core.advantages.groups``.
    """
    _refuse_infinite_signals(batch, signals)
    kl = _kl(batch, signals, config, policy_loss)
    if custom is None:
        advantages, returns = _tokens(batch, config.kl_coef * kl, signals, config)
    else:
        rows = custom(batch, signals, list(Ragged(kl, batch.loss_mask.lengths).split()))
        advantages, returns = _flat(rows["advantages"], kl), _flat(rows["returns"], kl)
    if distillation is not None and distillation.use_opd:
        advantages = _distilled(batch, signals, advantages, distillation.opd_kl_coef)
    _refuse_infinite(batch, "advantages", advantages)
    advantages = _trained(batch, advantages)
    if config.normalize_advantages:
        advantages = whiten(advantages, batch.loss_mask.values, reduce)
    lengths = batch.loss_mask.lengths
    if returns is not None:
        _refuse_infinite(batch, "returns", returns)
    return Targets(
        Ragged(advantages, lengths),
        None if returns is None else Ragged(_trained(batch, returns), lengths),
    )


def _tokens(
    batch: TrainBatch, penalties: Tensor, signals: PolicySignals, config: AdvantageConfig
) -> tuple[Tensor, Tensor | None]:
    match config.advantage_estimator:
        case "grpo" | "gspo" | "cispo" | "rloo" | "remax" | "maxrl" | "gdpo":
            return _broadcast(batch), None
        case "reinforce_plus_plus_baseline":
            return _broadcast(batch) - penalties, None
        case "reinforce_plus_plus":
            found = reinforce_plus_plus(penalties, batch.loss_mask, batch.rewards, config.gamma)
            return found, None
        case "ppo":
            assert signals.values is not None, "--advantage-estimator ppo without a critic's values"
            return generalized(
                penalties,
                signals.values.values,
                batch.loss_mask,
                batch.rewards,
                gamma=config.gamma,
                gae_lambda=config.lambd,
            )


def _broadcast(batch: TrainBatch) -> Tensor:
    return torch.repeat_interleave(batch.rewards, batch.loss_mask.lengths)


def _kl(
    batch: TrainBatch,
    signals: PolicySignals,
    config: AdvantageConfig,
    policy_loss: PolicyLossConfig,
) -> Tensor:
    """The KL estimate of each trained token; zeros where it has no coefficient."""
    if config.kl_coef == 0:
        return torch.zeros_like(batch.loss_mask.values)
    assert signals.ref_log_probs is not None, "--kl-coef without reference log-probabilities"
    kl = approx_kl(signals.log_probs.values, signals.ref_log_probs.values, policy_loss.kl_loss_type)
    return _trained(batch, kl)


def _distilled(
    batch: TrainBatch, signals: PolicySignals, advantages: Tensor, coefficient: float
) -> Tensor:
    teacher = signals.teacher_log_probs or batch.teacher_log_probs
    if teacher is None:
        raise SampleError(
            "no sample has `teacher_log_probs`, which --use-opd compares the policy with: start "
            "a teacher with --opd-type, or fill them in a custom generate or reward function"
        )
    return distilled(advantages, signals.log_probs.values, teacher.values, coefficient)


def _trained(batch: TrainBatch, x: Tensor) -> Tensor:
    """``x`` where tokens are trained on, else 0: a loss that multiplies NaN by 0 is NaN."""
    return torch.where(batch.loss_mask.values > 0, x, torch.zeros_like(x))


def _flat(rows: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(rows).to(like) if rows else like[:0]


def _refuse_infinite_signals(batch: TrainBatch, signals: PolicySignals) -> None:
    repeated = Ragged(_broadcast(batch), batch.loss_mask.lengths)
    found: dict[str, Ragged | None] = {
        "rewards": repeated,
        "log_probs": signals.log_probs,
        "ref_log_probs": signals.ref_log_probs,
        "teacher_log_probs": signals.teacher_log_probs or batch.teacher_log_probs,
        "values": signals.values,
    }
    for name, ragged in found.items():
        if ragged is not None:
            _refuse_infinite(batch, name, ragged.values)


def _refuse_infinite(batch: TrainBatch, name: str, values: Tensor) -> None:
    odd = (batch.loss_mask.values > 0) & ~values.isfinite()
    if not odd.any():
        return
    place = int(odd.nonzero()[0])
    ends = batch.loss_mask.lengths.cumsum(0)
    row = int(torch.searchsorted(ends, place, right=True))
    position = place - int(ends[row] - batch.loss_mask.lengths[row])
    raise SampleError(
        f"sample {int(batch.sample_ids[row])}: {name} of response token {position}, which is "
        f"trained on, is {float(values[place])}, not a finite number"
    )
