"""The same step gives the same loss and gradients however it is cut over ranks and microbatches."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from slime_core.batch import LocalTokens, LossInputs, PairInputs, ValueInputs
from slime_core.config.algorithm import (
    Aggregation,
    CriticConfig,
    PolicyLossConfig,
    PreferenceConfig,
)
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.interfaces import Reduce
from slime_core.losses.aggregate import LossOutput
from slime_core.losses.corrections import weight_sums
from slime_core.losses.policy import policy_loss
from slime_core.losses.preference import dpo_loss, reward_model_loss
from slime_core.losses.report import TERMS, finish_metrics
from slime_core.losses.sft import sft_loss
from slime_core.losses.value import value_loss
from slime_core.reduce import LocalReduce
from slime_testing.loss_case import on_ranks, pick_tokens
from slime_testing.ragged_case import Cut, Ragged, cuts, ragged
from torch import Tensor

LAYOUTS = [(data, context) for data in (1, 2, 4) for context in (1, 2)]
AGGREGATIONS = ("token", "sample", "rollout", "constant", "sequence-sum")
SURROGATES = ("clip", "gspo", "cispo", "sapo")
NAMES = (
    "log_probs",
    "old_log_probs",
    "ref_log_probs",
    "rollout_log_probs",
    "behaviour_log_probs",
    "advantages",
    "entropy",
)

# Other examples in every run; a failing one is small as it is.
FEW = settings(max_examples=3, phases=[Phase.reuse, Phase.generate])

Loss = Callable[[LocalTokens, dict[str, Tensor], tuple[int, ...], Reduce], LossOutput]


@dataclass(frozen=True)
class Outcome:
    """Of a step."""

    loss: float
    gradients: dict[str, Tensor]
    metrics: dict[str, float]


def visit[T](
    cut: Cut,
    step: Ragged,
    tokens: LocalTokens,
    vectors: dict[str, Tensor],
    each: Callable[[LocalTokens, dict[str, Tensor], tuple[int, ...], Reduce], T],
) -> list[T]:
    """``each`` of every microbatch on every rank; context ranks at the same time."""
    found: list[T] = []
    for data_rank, microbatches in enumerate(cut.microbatches):
        held = []
        for index, rows in enumerate(microbatches):
            part, places = step.part(tokens, rows)
            held.append((part, places, cut.holders(len(places), 10 * data_rank + index), rows))

        def work(rank: int, reduce: Reduce, held=held) -> list[T]:
            return [
                each(
                    pick_tokens(part, mine[rank]),
                    {name: x[places[mine[rank]]] for name, x in vectors.items()},
                    rows,
                    reduce,
                )
                for part, places, mine, rows in held
            ]

        alone = cut.num_context == 1
        ranks = [work(0, LocalReduce())] if alone else on_ranks(cut.num_context, work)
        found += [x for rank in ranks for x in rank]
    return found


def outcome(
    cut: Cut, step: Ragged, loss: Loss, vectors: dict[str, Tensor], aggregation: Aggregation
) -> Outcome:
    """What the trainer makes of a step: the sum over ranks and microbatches, divided once."""
    tokens, divisor = step.whole(aggregation)
    leaves = {name: x.detach().clone().requires_grad_() for name, x in vectors.items()}
    outputs = visit(cut, step, tokens, leaves, loss)
    total = torch.stack([output.loss for output in outputs]).sum() / divisor
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    sums = {
        name: sum(output.metrics[name].item() for output in outputs) / divisor
        for name in outputs[0].metrics
    }
    return Outcome(
        total.item(),
        {n: g for n, g in zip(leaves, gradients, strict=True) if g is not None},
        finish_metrics(sums) if "weight" in sums else sums,
    )


def in_one_piece(step: Ragged) -> Cut:
    """One rank, one microbatch."""
    return Cut(((tuple(range(len(step.masks))),),), 1, 0)


def check(
    data: st.DataObject,
    step: Ragged,
    make: Callable[[Cut], Loss],
    vectors: dict[str, Tensor],
    aggregation: Aggregation = "rollout",
    *,
    units: list[list[int]] | None = None,
) -> None:
    """Every layout agrees with one rank that has all in one microbatch."""
    expected = outcome(in_one_piece(step), step, make(in_one_piece(step)), vectors, aggregation)
    together = [[row] for row in range(len(step.masks))] if units is None else units
    for num_data, num_context in LAYOUTS:
        cut = data.draw(cuts(together, num_data, num_context))
        found = outcome(cut, step, make(cut), vectors, aggregation)
        assert found.loss == pytest.approx(expected.loss, rel=1e-9, abs=1e-12)
        assert set(found.gradients) == set(expected.gradients)
        for name, gradient in expected.gradients.items():
            torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-9, atol=1e-12)
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-9, abs=1e-12)


def policy(
    config: PolicyLossConfig, off_policy: OffPolicyConfig, *, mean_weight: float = 1.0
) -> Loss:
    def loss(tokens, vectors, rows, context):
        inputs = LossInputs(tokens, **vectors)
        return policy_loss(inputs, config, off_policy, context, mean_weight=mean_weight)

    return loss


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
@FEW
@given(step=ragged(min_samples=3), data=st.data())
def test_the_policy_loss(surrogate, aggregation, step, data):
    config = PolicyLossConfig(
        policy_surrogate=surrogate,
        loss_aggregation=aggregation,
        eps_clip_c=3.0 if surrogate in ("clip", "gspo") else None,
        entropy_coef=0.1,
        use_kl_loss=True,
        kl_loss_coef=0.2,
        kl_loss_type="k3",
        use_unbiased_kl=True,
    )
    loss = policy(config, OffPolicyConfig(use_opsm=True, opsm_delta=0.1))
    check(data, step, lambda _: loss, step.vectors(*NAMES), aggregation)


LEVELS = ("token", "sequence", "geometric")
CORRECTIONS = [
    *(
        OffPolicyConfig(use_tis=True, tis_level=level, tis_mode=mode, tis_clip_low=0.5)
        for level in LEVELS
        for mode in ("truncate", "clip", "mask")
    ),
    *(
        OffPolicyConfig(use_rs=True, rs_level=level, rs_lower_bound=0.5, rs_upper_bound=2.0)
        for level in LEVELS
    ),
]
OTHERS = [
    OffPolicyConfig(use_rs=True, rs_upper_bound=50.0, rs_veto_threshold=0.4),
    OffPolicyConfig(use_decoupled_ppo=True, tis_level="geometric"),
    OffPolicyConfig(use_rollout_logprobs=True),
    OffPolicyConfig(get_mismatch_metrics=True),
    OffPolicyConfig(
        use_tis=True, tis_level="sequence", use_rs=True, rs_level="geometric", use_opsm=True
    ),
]


def named(off_policy: OffPolicyConfig) -> str:
    """What differs from the defaults."""
    usual = asdict(OffPolicyConfig())
    return " ".join(str(v) for k, v in asdict(off_policy).items() if v != usual[k])


@pytest.mark.parametrize("off_policy", CORRECTIONS + OTHERS, ids=named)
@FEW
@given(step=ragged(min_samples=3), data=st.data())
def test_corrections(off_policy, step, data):
    surrogate = "gspo" if off_policy in OTHERS else "clip"
    loss = policy(PolicyLossConfig(policy_surrogate=surrogate), off_policy)
    check(data, step, lambda _: loss, step.vectors(*NAMES))


@pytest.mark.parametrize("mode", ["truncate", "clip", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@FEW
@given(step=ragged(min_samples=3), data=st.data())
def test_batch_normalised_weights(level, mode, step, data):
    off_policy = OffPolicyConfig(
        use_tis=True, tis_level=level, tis_mode=mode, tis_clip_low=0.5, tis_batch_normalize=True
    )
    vectors = step.vectors(*NAMES)
    tokens, _ = step.whole("rollout")

    def mean_weight(cut: Cut) -> float:
        """What a pass over the step finds before its first microbatch is trained on."""

        def sums(local, numbers, rows, context):
            train, behaviour = numbers["old_log_probs"], numbers["behaviour_log_probs"]
            return weight_sums(train, behaviour, local, off_policy, context)

        total, count = torch.stack(visit(cut, step, tokens, vectors, sums)).sum(0).tolist()
        return total / count if count else 1.0

    check(
        data,
        step,
        lambda cut: policy(PolicyLossConfig(), off_policy, mean_weight=mean_weight(cut)),
        vectors,
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@FEW
@given(step=ragged(min_samples=3), data=st.data())
def test_the_value_loss(aggregation, step, data):
    def loss(tokens, vectors, rows, context):
        return value_loss(ValueInputs(tokens, **vectors), CriticConfig(value_clip=0.3))

    check(data, step, lambda _: loss, step.vectors("values", "old_values", "returns"), aggregation)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@FEW
@given(step=ragged(min_samples=3), data=st.data())
def test_the_likelihood_of_demonstrations(aggregation, step, data):
    def loss(tokens, vectors, rows, context):
        nothing = torch.zeros_like(vectors["log_probs"])
        return sft_loss(LossInputs(tokens, vectors["log_probs"], nothing, nothing))

    check(data, step, lambda _: loss, step.vectors("log_probs"), aggregation)


def of_pairs(step: Ragged) -> list[list[int]]:
    """Rows 2i and 2i + 1 are pair i; both are in one microbatch."""
    return [[row, row + 1] for row in range(0, len(step.masks), 2)]


def pair_inputs(tokens, vectors, rows) -> PairInputs:
    """The even row of a pair is the chosen one."""
    numbers = torch.tensor(rows).long()
    chosen = numbers % 2 == 0
    return PairInputs(tokens, vectors["scores"], numbers // 2, chosen, vectors.get("ref_scores"))


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
@FEW
@given(step=ragged(min_samples=2, max_samples=4, pairs=True), data=st.data())
def test_preferences(kind, step, data):
    config = PreferenceConfig(dpo_loss_type=kind, dpo_beta=0.7, dpo_label_smoothing=0.1)

    def loss(tokens, vectors, rows, context):
        return dpo_loss(pair_inputs(tokens, vectors, rows), config, context)

    vectors = step.vectors("scores", "ref_scores")
    check(data, step, lambda _: loss, vectors, units=of_pairs(step))


@FEW
@given(step=ragged(min_samples=2, max_samples=4, pairs=True), data=st.data())
def test_the_reward_model(step, data):
    def loss(tokens, vectors, rows, context):
        return reward_model_loss(pair_inputs(tokens, vectors, rows), context)

    check(data, step, lambda _: loss, step.vectors("scores"), units=of_pairs(step))


@settings(max_examples=20)
@given(step=ragged(min_samples=2), data=st.data())
def test_a_mean_taken_in_each_microbatch_would_be_noticed(step, data):
    """The check can fail: a loss that divides by what its microbatch holds depends on the cut."""
    tokens = [sum(mask) for mask in step.masks]
    if min(tokens) == 0 or len(set(tokens)) == 1:
        return

    def loss(part, vectors, rows, context):
        output = sft_loss(LossInputs(part, vectors["x"], vectors["x"], vectors["x"]))
        return replace(output, loss=output.loss / part.mask.sum().clamp(min=1))

    one_each = Cut((tuple((row,) for row in range(len(tokens))),), 1, 0)
    vectors = step.vectors("x")
    found, expected = (
        outcome(cut, step, loss, vectors, "token") for cut in (one_each, in_one_piece(step))
    )
    assert found.loss != pytest.approx(expected.loss, rel=1e-6)


def test_only_what_is_minimised_depends_on_the_aggregation():
    step = Ragged(((1.0, 1.0), (1.0,), (0.0, 1.0, 1.0)), (0, 0, 1), 3)
    vectors = step.vectors(*NAMES)
    found = {
        name: outcome(
            in_one_piece(step), step, policy(PolicyLossConfig(), OffPolicyConfig()), vectors, name
        )
        for name in AGGREGATIONS
    }
    losses = {name: x.loss for name, x in found.items()}
    assert len({round(x, 9) for x in losses.values()}) == len(losses)
    assert all(TERMS & set(x.metrics) for x in found.values())
