import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.losses.corrections import bound, correct, level_ratio, weight_sums, without_veto
from slime_core.losses.policy import policy_loss
from slime_core.losses.sequence import off_policy_mask
from slime_core.reduce import LocalReduce
from slime_testing.loss_case import make_inputs, make_tokens, on_ranks, pick_tokens, vector
from slime_testing.ragged_case import ragged

ALONE = LocalReduce()
LEVELS = ("token", "sequence", "geometric")
MODES = ("truncate", "clip", "mask")

# Three responses: ratios 4 and 1/2; 3; a token that is not trained on, then 1/4.
TOKENS = make_tokens([2, 1, 2], mask=[1.0, 1.0, 1.0, 0.0, 1.0])
RATIOS = [4.0, 0.5, 3.0, 77.0, 0.25]
TRAIN = vector([-2.0] * 5)
BEHAVIOUR = TRAIN - vector(RATIOS).log()
ROOT = math.sqrt(2)


def config(**changes):
    return OffPolicyConfig(tis_clip_low=0.4, tis_clip=2.5, **changes)


def run(settings, *, behaviour=BEHAVIOUR, **options):
    return correct(TRAIN, behaviour, TOKENS, settings, ALONE, **options)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [4.0, 0.5, 3.0, 1.0, 0.25]),
        ("sequence", [2.0, 2.0, 3.0, 0.25, 0.25]),
        ("geometric", [ROOT, ROOT, 3.0, 0.25, 0.25]),
    ],
)
def test_the_three_levels_of_a_ratio_by_hand(level, expected):
    made = run(config(use_tis=True, tis_level=level))
    assert made.metrics["tis"].tolist() == pytest.approx(expected)
    assert made.metrics["tis_abs"].tolist() == pytest.approx([abs(x - 1) for x in expected])


@pytest.mark.parametrize(
    ("level", "mode", "weights", "keep"),
    [
        ("token", "truncate", [2.5, 0.5, 2.5, 1.0, 0.25], [1, 1, 1, 1, 1]),
        ("token", "clip", [2.5, 0.5, 2.5, 1.0, 0.4], [1, 1, 1, 1, 1]),
        ("token", "mask", [0.0, 0.5, 0.0, 1.0, 0.0], [0, 1, 0, 1, 0]),
        ("sequence", "truncate", [2.0, 2.0, 2.5, 0.25, 0.25], [1, 1, 1, 1, 1]),
        ("sequence", "clip", [2.0, 2.0, 2.5, 0.4, 0.4], [1, 1, 1, 1, 1]),
        ("sequence", "mask", [2.0, 2.0, 0.0, 0.0, 0.0], [1, 1, 0, 0, 0]),
        ("geometric", "truncate", [ROOT, ROOT, 2.5, 0.25, 0.25], [1, 1, 1, 1, 1]),
        ("geometric", "clip", [ROOT, ROOT, 2.5, 0.4, 0.4], [1, 1, 1, 1, 1]),
        ("geometric", "mask", [ROOT, ROOT, 0.0, 0.0, 0.0], [1, 1, 0, 0, 0]),
    ],
)
def test_the_three_modes_at_the_three_levels_by_hand(level, mode, weights, keep):
    made = run(config(use_tis=True, tis_level=level, tis_mode=mode))
    assert made.weights.tolist() == pytest.approx(weights)
    assert made.keep.tolist() == keep
    ratio = made.metrics["tis"].tolist()
    changed = [float(w != pytest.approx(r)) for w, r in zip(weights, ratio, strict=True)]
    assert made.metrics["tis_clipfrac"].tolist() == changed


def test_a_ratio_on_the_bound_is_within_it():
    on_the_edge = vector([0.5, 2.0, math.nextafter(0.5, 0), math.nextafter(2.0, 3)])
    assert bound(on_the_edge, "mask", low=0.5, high=2.0).inside.tolist() == [1, 1, 0, 0]


def test_nothing_asked_for_changes_nothing():
    made = run(OffPolicyConfig())
    assert made.weights.tolist() == [1.0] * 5
    assert made.keep.tolist() == [1.0] * 5
    assert made.metrics == {}


def test_equal_policies_are_left_alone_by_every_correction():
    for level in LEVELS:
        for mode in MODES:
            settings = config(
                use_tis=True,
                tis_level=level,
                tis_mode=mode,
                use_rs=True,
                rs_level=level,
                rs_veto_threshold=1e-4,
            )
            made = run(settings, behaviour=TRAIN.clone())
            assert made.weights.tolist() == [1.0] * 5
            assert made.keep.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("level", "keep"),
    [("token", [0, 1, 0, 1, 0]), ("sequence", [1, 1, 0, 0, 0]), ("geometric", [1, 1, 0, 0, 0])],
)
def test_rejection_at_the_three_levels_by_hand(level, keep):
    made = run(OffPolicyConfig(use_rs=True, rs_level=level, rs_lower_bound=0.4, rs_upper_bound=2.5))
    assert made.keep.tolist() == keep
    assert made.weights.tolist() == [1.0] * 5
    assert made.metrics["rs_mask_fraction"].tolist() == [1.0 - k for k in keep]


def test_rejection_without_bounds_of_its_own_has_those_of_the_weights():
    assert run(config(use_rs=True)).keep.tolist() == [0, 1, 0, 1, 0]
    wider = run(config(use_rs=True, rs_upper_bound=3.5, rs_lower_bound=0.2))
    assert wider.keep.tolist() == [0, 1, 1, 1, 1]


def test_weights_and_rejection_have_levels_and_bounds_of_their_own():
    made = run(config(use_tis=True, use_rs=True, rs_level="sequence", rs_upper_bound=3.5))
    assert made.weights.tolist() == pytest.approx([2.5, 0.5, 2.5, 1.0, 0.25])
    assert made.keep.tolist() == [1, 1, 1, 0, 0]


def test_one_hopeless_token_vetoes_its_whole_response():
    settings = OffPolicyConfig(use_rs=True, rs_lower_bound=0.0, rs_upper_bound=100.0)
    made = run(replace(settings, rs_veto_threshold=0.6))
    assert made.keep.tolist() == [0, 0, 1, 0, 0]
    assert made.metrics["rs_veto_fraction"].tolist() == [1, 1, 0, 1, 1]
    assert run(replace(settings, rs_veto_threshold=0.3)).keep.tolist() == [1, 1, 1, 0, 0]
    assert run(settings).keep.tolist() == [1] * 5


def test_a_token_that_is_not_trained_on_vetoes_nothing():
    drift = vector([0.0, 0.0, 0.0, math.log(1e-9), 0.0])
    assert without_veto(drift, TOKENS, 1e-4, ALONE).tolist() == [1] * 5


@pytest.mark.parametrize(
    ("level", "mode", "expected"),
    [
        ("token", "truncate", (2.5 + 0.5 + 2.5 + 0.25, 4)),
        ("token", "mask", (0.5, 1)),
        ("sequence", "truncate", (2.0 + 2.5 + 0.25, 3)),
        ("sequence", "mask", (2.0, 1)),
    ],
)
def test_the_mean_weight_of_a_step_by_hand(level, mode, expected):
    settings = config(use_tis=True, tis_level=level, tis_mode=mode)
    assert weight_sums(TRAIN, BEHAVIOUR, TOKENS, settings, ALONE).tolist() == pytest.approx(
        expected
    )


@pytest.mark.parametrize("mode", MODES)
def test_normalised_weights_have_mean_one_over_what_is_kept(mode):
    settings = config(use_tis=True, tis_mode=mode, tis_batch_normalize=True)
    total, count = weight_sums(TRAIN, BEHAVIOUR, TOKENS, settings, ALONE).tolist()
    made = run(settings, mean_weight=total / count)
    trained = TOKENS.mask * made.keep
    assert ((made.weights * trained).sum() / trained.sum()).item() == pytest.approx(1.0)


def test_no_gradient_goes_through_a_correction():
    train = TRAIN.clone().requires_grad_()
    settings = config(use_tis=True, use_rs=True, rs_veto_threshold=1e-4)
    made = correct(train, BEHAVIOUR, TOKENS, settings, ALONE)
    for x in (made.weights, made.keep, *made.metrics.values()):
        assert not x.requires_grad
    assert not weight_sums(train, BEHAVIOUR, TOKENS, settings, ALONE).requires_grad


# what the policy loss makes of them: surrogate of 4 tokens with ratio 1 to the old policy


def loss(ratios, advantages, *, tokens, ratio=None, **settings):
    """Of a policy that is ``ratio`` times the old one, which is ``ratios`` times the behaviour."""
    size = len(ratios)
    inputs = make_inputs(
        ratio or [1.0] * size,
        advantages,
        tokens=tokens,
        rollout_log_probs=vector([-1.0] * size) - vector(ratios).log(),
    )
    out = policy_loss(inputs, PolicyLossConfig(), OffPolicyConfig(**settings), ALONE)
    (gradient,) = torch.autograd.grad(out.loss, inputs.log_probs)
    return out.loss.item(), gradient.tolist()


def test_icepop_leaves_tokens_beyond_the_bounds_out_of_the_loss_but_not_of_its_mean():
    found, gradient = loss(
        [4.0, 0.5, 1.5, 0.1],
        [1.0, 1.0, 2.0, 1.0],
        tokens=make_tokens([4], denominators=4.0),
        use_tis=True,
        tis_mode="mask",
        tis_clip=2.0,
        tis_clip_low=0.4,
    )
    assert found == pytest.approx(-(0.5 + 3.0) / 4)
    assert gradient == pytest.approx([0.0, -0.5 / 4, -3.0 / 4, 0.0])


def test_the_weight_of_a_sequence_is_for_all_its_tokens():
    found, gradient = loss(
        [2.0, 0.75, 3.0],
        [1.0, -1.0, 1.0],
        tokens=make_tokens([2, 1], denominators=2.0),
        use_tis=True,
        tis_level="sequence",
        tis_clip=2.5,
    )
    assert found == pytest.approx((-1.5 + 1.5 - 2.5) / 2)
    assert gradient == pytest.approx([-1.5 / 2, 1.5 / 2, -2.5 / 2])


def test_batch_normalised_weights_do_not_depend_on_the_rest_of_the_microbatch():
    settings = OffPolicyConfig(use_tis=True, tis_clip=8.0, tis_batch_normalize=True)
    mean = (4.0 + 1.0 + 1.0) / 3
    alone = make_inputs(
        [1.0], [1.0], tokens=make_tokens([1]), rollout_log_probs=vector([-1.0 - math.log(4)])
    )
    out = policy_loss(alone, PolicyLossConfig(), settings, ALONE, mean_weight=mean)
    assert out.loss.item() == pytest.approx(-4.0 / 2.0)


def test_rejecting_everything_is_no_loss_and_no_division_by_zero():
    for level in LEVELS:
        found, gradient = loss(
            [9.0, 9.0, 9.0],
            [1.0, 1.0, 1.0],
            tokens=make_tokens([2, 1], denominators=3.0),
            use_rs=True,
            rs_level=level,
            rs_upper_bound=2.0,
        )
        assert found == 0.0
        assert gradient == [0.0] * 3


@pytest.mark.parametrize(
    ("level", "weights"), [("token", [0.5, 2.0, 1.0]), ("sequence", [1.5, 1.5, 1.0])]
)
def test_decoupled_ppo_has_three_policies(level, weights):
    # current to proximal 1.5 | 0.5 | 1; proximal to behaviour 0.5, 3 | 1; engine far from all
    inputs = make_inputs(
        [1.5, 0.5, 1.0],
        [1.0, 1.0, -1.0],
        tokens=make_tokens([2, 1], denominators=3.0),
        behaviour_log_probs=vector([-1.0, -1.0, -1.0]) - vector([0.5, 3.0, 1.0]).log(),
        rollout_log_probs=vector([-9.0] * 3),
    )
    settings = OffPolicyConfig(use_decoupled_ppo=True, tis_level=level, tis_clip=2.0)
    out = policy_loss(inputs, PolicyLossConfig(), settings, ALONE)
    clipped = [-1.2, -0.5, 1.0]
    expected = sum(w * c for w, c in zip(weights, clipped, strict=True)) / 3
    assert out.loss.item() == pytest.approx(expected)
    out.loss.backward()
    # the first is clipped; the ratio to the behaviour policy is the product of both
    assert inputs.log_probs.grad.tolist() == pytest.approx(
        [0.0, -0.5 * weights[1] / 3, 1.0 * weights[2] / 3]
    )


@pytest.mark.parametrize(
    ("delta", "keep"),
    [
        (0.0, [0, 1, 1, 1, 0]),
        (0.5, [1, 1, 1, 1, 0]),
        (2.0, [1, 1, 1, 1, 1]),
    ],
)
def test_bad_sequences_are_masked_by_their_mean_drift_by_hand(delta, keep):
    # mean drifts (0.9 - 0.1) / 2 = 0.4; -3; 2, of its one trained token
    drift = vector([0.9, -0.1, -3.0, 50.0, 2.0])
    advantages = vector([-1.0, 1.0, -1.0, 0.0, -1.0])
    found = off_policy_mask(drift, advantages, TOKENS, delta, ALONE)
    assert found.tolist() == keep


# any shape


def reference(ratios, masks, level):
    """Sample by sample, in plain Python."""
    found = []
    for row, mask in zip(ratios, masks, strict=True):
        logs = [math.log(r) for r, m in zip(row, mask, strict=True) if m]
        whole = {
            "sequence": math.exp(sum(logs)),
            "geometric": math.exp(sum(logs) / max(len(logs), 1)),
        }
        found += [whole.get(level, r if m else 1.0) for r, m in zip(row, mask, strict=True)]
    return found


@given(ragged(), st.sampled_from(LEVELS))
def test_every_level_is_that_of_a_loop_over_samples(step, level):
    drift = step.vectors("drift")["drift"] + 3
    ratios = [row.exp().tolist() for row in drift.split(step.lengths)]
    tokens = step.tokens()
    made = correct(
        drift,
        torch.zeros_like(drift),
        tokens,
        OffPolicyConfig(use_tis=True, tis_level=level),
        ALONE,
    )
    expected = reference(ratios, step.masks, level)
    assert made.metrics["tis"].tolist() == pytest.approx(expected, rel=1e-9)
    assert made.weights.tolist() == pytest.approx([min(x, 2.0) for x in expected], rel=1e-9)


@given(ragged(), st.sampled_from(LEVELS), st.sampled_from(LEVELS), st.sampled_from(MODES))
def test_context_ranks_some_of_them_empty_weigh_tokens_as_one_rank_does(step, weigh, reject, mode):
    vectors = step.vectors("train", "behaviour")
    tokens = step.tokens()
    settings = config(
        use_tis=True,
        tis_level=weigh,
        tis_mode=mode,
        use_rs=True,
        rs_level=reject,
        rs_veto_threshold=0.4,
    )
    alone = correct(vectors["train"], vectors["behaviour"], tokens, settings, ALONE)
    sums = weight_sums(vectors["train"], vectors["behaviour"], tokens, settings, ALONE)
    size = sum(step.lengths)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(step.seed))
    places = [order[: size // 3], order[size // 3 :], order[:0]]

    def work(rank, reduce):
        held = places[rank]
        train, behaviour = vectors["train"][held], vectors["behaviour"][held]
        local = pick_tokens(tokens, held)
        made = correct(train, behaviour, local, settings, reduce)
        return made, weight_sums(train, behaviour, local, settings, reduce)

    parts = on_ranks(3, work)
    for held, (made, _) in zip(places, parts, strict=True):
        torch.testing.assert_close(made.weights, alone.weights[held], rtol=1e-9, atol=0)
        assert torch.equal(made.keep, alone.keep[held])
        for name, x in made.metrics.items():
            torch.testing.assert_close(x, alone.metrics[name][held], rtol=1e-9, atol=1e-12)
    # tokens are counted where they are; sequences by every rank alike: the quotient is the same
    total, count = torch.stack([found for _, found in parts]).sum(0).tolist()
    assert total * sums[1].item() == pytest.approx(count * sums[0].item())


@given(
    ragged(min_samples=1), st.sampled_from(LEVELS), st.sampled_from([math.inf, -math.inf, math.nan])
)
def test_whatever_stands_where_nothing_is_trained_on_is_harmless(step, level, junk):
    vectors = step.vectors("train", "behaviour")
    tokens = step.tokens()
    settings = config(
        use_tis=True, tis_level=level, use_rs=True, rs_level=level, rs_veto_threshold=0.4
    )
    clean = correct(vectors["train"], vectors["behaviour"], tokens, settings, ALONE)
    dirty = [torch.where(tokens.mask > 0, x, junk) for x in vectors.values()]
    for train, behaviour in (dirty, (dirty[0], vectors["behaviour"]), (vectors["train"], dirty[1])):
        found = correct(train, behaviour, tokens, settings, ALONE)
        assert torch.equal(found.weights, clean.weights)
        assert torch.equal(found.keep, clean.keep)
        sums = weight_sums(train, behaviour, tokens, settings, ALONE)
        assert sums.isfinite().all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_token_the_engine_or_the_trainer_would_never_write_has_a_finite_weight(level, mode):
    tokens = make_tokens([2, 1])
    for train, behaviour in (
        ([-math.inf, -1.0, -1.0], [-1.0] * 3),
        ([-1.0] * 3, [-math.inf, -1, -1]),
    ):
        settings = config(use_tis=True, tis_level=level, tis_mode=mode)
        made = correct(vector(train), vector(behaviour), tokens, settings, ALONE)
        assert made.weights.isfinite().all()
        assert made.weights[2].item() == 1.0
    ratio = level_ratio(vector([800.0, 0.0, -800.0]), tokens, level, ALONE)
    assert ratio.isfinite().all()
    assert (ratio > 0).all()


def test_a_response_without_a_trained_token_has_the_ratio_one_and_is_never_vetoed():
    tokens = make_tokens([3], mask=[0.0] * 3)
    for level in LEVELS:
        settings = config(
            use_tis=True, tis_level=level, use_rs=True, rs_level=level, rs_veto_threshold=0.9
        )
        made = correct(vector([-9.0] * 3), vector([-1.0] * 3), tokens, settings, ALONE)
        assert made.weights.tolist() == [1.0] * 3
        assert made.keep.tolist() == [1.0] * 3
        assert weight_sums(
            vector([-9.0] * 3), vector([-1.0] * 3), tokens, settings, ALONE
        ).tolist() == [0.0, 0.0]
