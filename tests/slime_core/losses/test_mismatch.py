import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slime_core.batch import LossInputs
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.losses.mismatch import mismatch_metrics
from slime_core.losses.policy import policy_loss
from slime_core.losses.report import TERMS, WEIGHT, finish_metrics, token_sums
from slime_core.reduce import LocalReduce
from slime_testing.loss_case import make_tokens, on_ranks, pick_tokens, vector
from slime_testing.ragged_case import ragged

ALONE = LocalReduce()


def means(train, behaviour, tokens):
    """What a step that is one microbatch reports."""
    found = token_sums(mismatch_metrics(train, behaviour, tokens, ALONE), tokens)
    return finish_metrics({name: x.item() for name, x in found.items()})


def test_every_divergence_by_hand():
    # ratios 2 and 1/4 in one response, 3 in another; a token that is not trained on
    tokens = make_tokens([3, 1], mask=[1.0, 1.0, 0.0, 1.0])
    behaviour = vector([-2.0, -1.0, math.nan, -3.0])
    train = behaviour + vector([2.0, 0.25, 9.0, 3.0]).log()
    found = means(train, behaviour, tokens)
    two, four, three = math.log(2), math.log(4), math.log(3)
    k3 = [1 - two, -0.75 + four, 2 - three]
    # log-ratios of the first response add up to log(1/2), on average log(1/2) / 2
    training = [(3 - two + four) / 2] * 2 + [3 - three]
    rollout = [1.5, 1.5, 3.0]
    gap = [two / 2, two / 2, -three]
    expected = {
        "mismatch_kl": (-two + four - three) / 3,
        "mismatch_k3": sum(k3) / 3,
        "training_log_ppl": sum(training) / 3,
        "rollout_log_ppl": sum(rollout) / 3,
        "training_ppl": sum(map(math.exp, training)) / 3,
        "rollout_ppl": sum(map(math.exp, rollout)) / 3,
        "log_ppl_diff": sum(gap) / 3,
        "log_ppl_abs_diff": (two + three) / 3,
        "ppl_ratio": (2 * math.sqrt(2) + 1 / 3) / 3,
        "chi2_token": (4 + 1 / 16 + 9) / 3 - 1,
        "chi2_seq": (1 / 4 + 1 / 4 + 9) / 3 - 1,
        "is_ratio_mean": (2 + 0.25 + 3) / 3,
        "is_ratio_ess": ((2 + 0.25 + 3) / 3) ** 2 / ((4 + 1 / 16 + 9) / 3),
    }
    assert found == pytest.approx(expected)


def test_sums_without_a_weight_are_reported_as_they_are():
    sums = {"loss": 3.0, "rewards/margin": 2.0}
    assert finish_metrics(sums) == sums
    assert finish_metrics(sums | {WEIGHT: 4.0}) == {"loss": 3.0, "rewards/margin": 0.5}
    nothing = {"loss": 0.0, "tis": 0.0, WEIGHT: 0.0}
    assert finish_metrics(nothing) == {"loss": 0.0, "tis": 0.0}


def test_equal_policies_are_no_mismatch():
    tokens = make_tokens([2, 1])
    log_probs = vector([-1.0, -2.0, -3.0])
    found = means(log_probs, log_probs.clone(), tokens)
    nothing = ("mismatch_kl", "mismatch_k3", "log_ppl_diff", "log_ppl_abs_diff")
    for name in (*nothing, "chi2_token", "chi2_seq"):
        assert found[name] == 0.0
    for name in ("ppl_ratio", "is_ratio_mean", "is_ratio_ess"):
        assert found[name] == 1.0


def test_one_heavy_token_is_all_of_the_effective_sample_size():
    # one weight of 100 among 99 of 1: (199 / 100)^2 / (10099 / 100)
    behaviour = torch.full((100,), -5.0, dtype=torch.float64)
    train = behaviour.clone()
    train[0] += math.log(100)
    found = means(train, behaviour, make_tokens([100]))
    assert found["is_ratio_ess"] == pytest.approx(1.99**2 / 100.99)


def test_divergences_have_the_expectation_they_are_named_after():
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)  # the trainer's policy
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)  # drew the tokens
    tokens = make_tokens([1, 1, 1], denominators=(1 / q).tolist())
    found = means(p.log(), q.log(), tokens)
    exact = (q * (q / p).log()).sum().item()
    assert found["mismatch_kl"] == pytest.approx(exact)
    assert found["mismatch_k3"] == pytest.approx(exact)
    chi2 = ((p - q) ** 2 / q).sum().item()
    assert found["chi2_token"] == pytest.approx(chi2)
    assert found["chi2_seq"] == pytest.approx(chi2)
    assert found["is_ratio_mean"] == pytest.approx(1.0)
    assert found["is_ratio_ess"] == pytest.approx(1 / (1 + chi2))


def test_nothing_trained_on_is_nothing_reported_and_no_division_by_zero():
    for lengths in ([], [2]):
        tokens = make_tokens(lengths, mask=[0.0] * sum(lengths))
        x = vector([math.inf] * sum(lengths))
        found = means(x, -x, tokens)
        assert set(found.values()) == {0.0}


def test_tokens_that_one_side_would_never_write_are_finite():
    tokens = make_tokens([2, 1])
    far = vector([-900.0, -1.0, -1.0])
    near = vector([-1.0, -1.0, -900.0])
    for train, behaviour in ((far, near), (near, far)):
        found = mismatch_metrics(train, behaviour, tokens, ALONE)
        finite = {name for name, x in found.items() if x.isfinite().all()}
        assert set(found) - finite <= {"training_ppl", "rollout_ppl"}


@given(ragged(min_samples=1))
def test_every_number_is_that_of_a_loop_over_samples(step):
    vectors = step.vectors("train", "behaviour")
    found = means(vectors["train"], vectors["behaviour"], step.tokens())
    rows = []
    for mask, train, behaviour in zip(
        step.masks,
        vectors["train"].split(step.lengths),
        vectors["behaviour"].split(step.lengths),
        strict=True,
    ):
        pairs = [
            (t, b) for t, b, m in zip(train.tolist(), behaviour.tolist(), mask, strict=True) if m
        ]
        for t, b in pairs:
            ppl = [math.exp(-sum(side) / len(pairs)) for side in zip(*pairs, strict=True)]
            ratio = math.exp(t - b)
            whole = math.exp(sum(t - b for t, b in pairs))
            rows.append((b - t, ratio - 1 - t + b, *ppl, ppl[0] / ppl[1], ratio, whole))
    if not rows:
        assert set(found.values()) == {0.0}
        return
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]
    kl, k3, training, rollout, ppl_ratio, ratio, whole = columns
    expected = {
        "mismatch_kl": kl,
        "mismatch_k3": k3,
        "training_ppl": training,
        "rollout_ppl": rollout,
        "training_log_ppl": training.log(),
        "rollout_log_ppl": rollout.log(),
        "ppl_ratio": ppl_ratio,
        "log_ppl_diff": ppl_ratio.log(),
        "log_ppl_abs_diff": ppl_ratio.log().abs(),
        "chi2_token": ratio**2 - 1,
        "chi2_seq": whole**2 - 1,
        "is_ratio_mean": ratio,
        "is_ratio_ess": ratio.sum() ** 2 / (ratio**2).sum(),
    }
    by_mean = {name: x.mean().item() for name, x in expected.items() if name != "is_ratio_ess"}
    assert found == pytest.approx(
        by_mean | {"is_ratio_ess": expected["is_ratio_ess"].item() / len(ratio)},
        abs=1e-9,
    )


@given(ragged(min_samples=1), st.integers(1, 3), st.floats(0.5, 50))
def test_merging_sums_of_microbatches_gives_what_the_whole_step_gives(step, parts, divisor):
    vectors = step.vectors("log_probs", "old_log_probs", "rollout_log_probs", "advantages")
    whole = step.tokens(2.0)
    settings = OffPolicyConfig(use_tis=True, tis_level="sequence", use_rs=True, use_opsm=True)

    def sums(rows):
        tokens, places = step.part(whole, rows)
        inputs = LossInputs(tokens, **{name: x[places] for name, x in vectors.items()})
        out = policy_loss(inputs, PolicyLossConfig(), settings, ALONE)
        return {name: x.item() for name, x in out.metrics.items()}

    count = len(step.lengths)
    once = sums(range(count))
    cut = [sums(range(i, count, parts)) for i in range(parts)]
    merged = {name: sum(part[name] for part in cut) / divisor for name in once}
    expected = finish_metrics(once)
    found = finish_metrics(merged)
    assert set(found) == set(expected)
    assert "is_ratio_ess" in found
    for name, value in expected.items():
        scale = divisor if name in TERMS else 1.0
        assert found[name] * scale == pytest.approx(value, rel=1e-9, abs=1e-12), name


@given(ragged(min_samples=1))
def test_context_ranks_report_what_one_rank_does(step):
    vectors = step.vectors("train", "behaviour")
    tokens = step.tokens()
    alone = mismatch_metrics(vectors["train"], vectors["behaviour"], tokens, ALONE)
    order = torch.randperm(sum(step.lengths), generator=torch.Generator().manual_seed(step.seed))
    places = [order[::2], order[1::2]]

    def work(rank, reduce):
        held = places[rank]
        return mismatch_metrics(
            vectors["train"][held], vectors["behaviour"][held], pick_tokens(tokens, held), reduce
        )

    for held, found in zip(places, on_ranks(2, work), strict=True):
        for name, x in found.items():
            torch.testing.assert_close(x, alone[name][held], rtol=1e-9, atol=1e-12)
