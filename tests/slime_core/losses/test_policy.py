import math
from dataclasses import replace

import pytest
import torch
from slime_core.batch import LossInputs
from slime_core.config.algorithm import PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.losses.policy import policy_loss
from slime_core.losses.report import WEIGHT, finish_metrics
from slime_core.reduce import LocalReduce
from slime_testing.loss_case import make_inputs, make_tokens, vector

CLIP, GSPO, CISPO, SAPO = (
    PolicyLossConfig(policy_surrogate=s) for s in ("clip", "gspo", "cispo", "sapo")
)


def run(inputs, config=CLIP, off_policy=None):
    return policy_loss(inputs, config, off_policy or OffPolicyConfig(), LocalReduce())


def test_clip_by_hand():
    # r=1.5, A=1: -min(1.5, 1.2); r=0.5, A=-1: max(0.5, 0.8); r=1.1: -1.1; r=1.5, A=-1: 1.5
    out = run(make_inputs([1.5, 0.5, 1.1, 1.5], [1.0, -1.0, 1.0, -1.0]))
    assert out.loss.item() == pytest.approx((-1.2 + 0.8 - 1.1 + 1.5) / 4)
    assert out.metrics["pg_clipfrac"].item() == pytest.approx(2 / 4)
    drift = -math.log(1.5) - math.log(0.5) - math.log(1.1) - math.log(1.5)
    assert out.metrics["ppo_kl"].item() == pytest.approx(drift / 4)


def test_the_upper_clip_is_its_own():
    out = run(make_inputs([1.5], [1.0]), PolicyLossConfig(eps_clip_high=0.28))
    assert out.loss.item() == pytest.approx(-1.28)


def test_dual_clip_bounds_what_a_bad_token_costs():
    config = PolicyLossConfig(eps_clip_c=3.0)
    out = run(make_inputs([10.0, 10.0], [-1.0, 1.0]), config)
    assert out.loss.item() == pytest.approx((3.0 - 1.2) / 2)


def test_ppo_kl_is_exactly_zero_before_the_first_step():
    log_probs = torch.randn(50) - 3
    old = log_probs.clone()
    n = len(old)
    inputs = LossInputs(
        tokens=make_tokens([n], denominators=7.0),
        log_probs=log_probs.requires_grad_(),
        old_log_probs=old,
        advantages=torch.randn(n),
    )
    for config in (CLIP, GSPO, CISPO, SAPO):
        out = run(inputs, config)
        assert out.metrics["ppo_kl"].item() == 0.0
        assert out.metrics["pg_clipfrac"].item() == 0.0


def test_gspo_gives_all_tokens_the_ratio_of_the_sequence():
    # geometric mean of 4, 1, 1 over the trained tokens (the last is not): 2; clipped to 1.2
    tokens = make_tokens([3], mask=[1.0, 1.0, 0.0], denominators=3.0)
    inputs = make_inputs([4.0, 1.0, 9.0], [1.0] * 3, tokens=tokens)
    out = run(inputs, GSPO)
    assert out.loss.item() == pytest.approx(-1.2 * 2 / 3)
    inputs = make_inputs([4.0, 1.0, 9.0], [-1.0] * 3, tokens=tokens)
    assert run(inputs, GSPO).loss.item() == pytest.approx(2.0 * 2 / 3)


def test_cispo_by_hand():
    inputs = make_inputs([4.0, 0.5], [1.0, -2.0])
    out = run(inputs, replace(CISPO, eps_clip=1.0, eps_clip_high=1.0))
    lp = [math.log(4) - 1, math.log(0.5) - 1]
    assert out.loss.item() == pytest.approx((-2 * lp[0] + 0.5 * 2 * lp[1]) / 2)
    out.loss.backward()
    assert inputs.log_probs.grad.tolist() == pytest.approx([-2 / 2, 0.5 * 2 / 2])
    assert out.metrics["pg_clipfrac"].item() == pytest.approx(0.5)


def test_truncated_importance_sampling_by_hand():
    rollout = torch.tensor([-1.0 - math.log(4), -1.0, -1.0 + math.log(2)], dtype=torch.float64)
    inputs = make_inputs([1.0, 1.1, 1.0], [1.0, 1.0, 1.0], rollout_log_probs=rollout)
    out = run(
        inputs,
        off_policy=OffPolicyConfig(use_tis=True, tis_mode="clip", tis_clip=2.0, tis_clip_low=0.6),
    )
    assert out.loss.item() == pytest.approx(-(2.0 + 1.1 + 0.6) / 3)
    found = {name: out.metrics[name].item() for name in ("tis", "tis_clipfrac", "tis_abs", "ois")}
    assert found == pytest.approx(
        {"tis": 5.5 / 3, "tis_clipfrac": 2 / 3, "tis_abs": 3.5 / 3, "ois": 3.1 / 3}
    )
    expected = (math.log(4) + math.log(2)) / 3
    assert out.metrics["train_rollout_logprob_abs_diff"].item() == pytest.approx(expected)


def test_the_engines_can_stand_for_the_old_policy():
    rollout = torch.tensor([-2.0], dtype=torch.float64)
    inputs = make_inputs([1.0], [1.0], rollout_log_probs=rollout)
    out = run(inputs, off_policy=OffPolicyConfig(use_rollout_logprobs=True))
    assert out.metrics["ppo_kl"].item() == pytest.approx(-1.0)
    assert out.metrics["train_rollout_logprob_abs_diff"].item() == pytest.approx(1.0)


def test_drifted_bad_sequences_are_left_out():
    tokens = make_tokens([2, 2], denominators=4.0)
    inputs = make_inputs([0.5, 0.5, 1.0, 1.0], [-1.0, 1.0, -1.0, -1.0], tokens=tokens)
    out = run(inputs, off_policy=OffPolicyConfig(use_opsm=True, opsm_delta=0.1))
    assert out.loss.item() == pytest.approx((0.0 - 0.5 + 1.0 + 1.0) / 4)
    assert out.metrics["opsm_clipfrac"].item() == pytest.approx(1 / 4)


def test_entropy_and_kl_terms_by_hand():
    inputs = make_inputs(
        [1.0, 1.0],
        [0.0, 0.0],
        entropy=torch.tensor([2.0, 4.0], dtype=torch.float64),
        ref_log_probs=torch.tensor([-1.5, -1.0], dtype=torch.float64),
    )
    config = PolicyLossConfig(
        entropy_coef=0.1, use_kl_loss=True, kl_loss_coef=0.5, kl_loss_type="k2"
    )
    out = run(inputs, config)
    assert out.metrics["entropy_loss"].item() == pytest.approx(3.0)
    assert out.metrics["kl_loss"].item() == pytest.approx(0.125 / 2)
    assert out.loss.item() == pytest.approx(-0.3 + 0.5 * 0.0625)


def test_the_unbiased_kl_has_the_gradient_of_the_kl():
    # KL(p || q) over a two-letter alphabet, all letters weighted by their probability
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    base = torch.tensor([-0.5, 0.4], dtype=torch.float64).log_softmax(0)
    log_probs = logits.log_softmax(0)
    exact = (log_probs.exp() * (log_probs - base)).sum()
    (expected,) = torch.autograd.grad(exact, logits)
    config = PolicyLossConfig(
        use_kl_loss=True, kl_loss_coef=1.0, kl_loss_type="k3", use_unbiased_kl=True
    )
    log_probs = logits.log_softmax(0)
    inputs = make_inputs(
        [1.0, 1.0],
        [0.0, 0.0],
        log_probs=log_probs,
        old_log_probs=log_probs.detach(),
        ref_log_probs=base,
        tokens=make_tokens([2], denominators=(1 / log_probs.detach().exp()).tolist()),
    )
    run(inputs, config).loss.backward()
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("config", [CLIP, GSPO, CISPO, SAPO])
def test_garbage_on_untrained_tokens_changes_neither_loss_nor_gradient(config):
    config = replace(
        config, use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type="k3", entropy_coef=0.1
    )
    off_policy = OffPolicyConfig(use_tis=True, tis_level="sequence", use_rs=True, use_opsm=True)
    tokens = make_tokens([3], mask=[1.0, 0.0, 1.0], denominators=2.0)
    vectors = {
        name: vector([-1.1, -0.9, -1.2])
        for name in ("ref_log_probs", "rollout_log_probs", "entropy")
    }
    clean = make_inputs([1.1, 1.0, 0.9], [1.0, 0.0, -1.0], tokens=tokens, **vectors)
    for junk in (math.inf, -math.inf, math.nan):
        dirty = make_inputs([1.1, 1.0, 0.9], [1.0, 0.0, -1.0], tokens=tokens, **vectors)
        for name in ("log_probs", "old_log_probs", "advantages", *vectors):
            bad = getattr(dirty, name).detach().clone()
            bad[1] = junk
            dirty = replace(dirty, **{name: bad})
        dirty.log_probs.requires_grad_()
        outputs = [run(inputs, config, off_policy) for inputs in (clean, dirty)]
        (expected,) = torch.autograd.grad(outputs[0].loss, clean.log_probs)
        (found,) = torch.autograd.grad(outputs[1].loss, dirty.log_probs)
        assert outputs[0].loss.item() == outputs[1].loss.item()
        assert found.tolist() == expected.tolist()
        assert all(torch.isfinite(x) for x in outputs[1].metrics.values())


@pytest.mark.parametrize("surrogate", ["clip", "gspo", "cispo", "sapo"])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "low_var_kl"])
def test_gradients_are_those_of_finite_differences(surrogate, kind):
    torch.manual_seed(0)
    config = PolicyLossConfig(
        policy_surrogate=surrogate,
        eps_clip_c=None if surrogate in ("cispo", "sapo") else 3.0,
        use_kl_loss=True,
        kl_loss_coef=0.3,
        kl_loss_type=kind,
        use_unbiased_kl=True,
    )
    off_policy = OffPolicyConfig(use_tis=True)
    old = torch.randn(6, dtype=torch.float64) - 2
    base = make_inputs(
        [1.0] * 6,
        torch.randn(6).tolist(),
        tokens=make_tokens([2, 3, 1], mask=[1.0, 1, 0, 1, 1, 1], denominators=6.0),
        old_log_probs=old,
        ref_log_probs=old - 0.1 * torch.randn(6, dtype=torch.float64),
        rollout_log_probs=old + 0.1 * torch.randn(6, dtype=torch.float64),
    )
    start = (old + 0.4 * torch.randn(6, dtype=torch.float64)).requires_grad_()
    if surrogate == "cispo":  # its weight is a constant by definition
        frozen = torch.exp(start - old).clamp(0.8, 1.2).detach()

        def loss(log_probs):
            out = run(replace(base, log_probs=log_probs), config, off_policy).loss
            moved = torch.exp(log_probs - old).clamp(0.8, 1.2)
            weights = torch.exp(old - base.rollout_log_probs).clamp(max=2.0)
            terms = (moved.detach() - frozen) * base.advantages * log_probs * weights
            return out + (terms * base.tokens.mask).sum() / 6

    else:

        def loss(log_probs):
            return run(replace(base, log_probs=log_probs), config, off_policy).loss

    assert torch.autograd.gradcheck(loss, (start,))


def test_the_entropy_bonus_has_its_gradient():
    inputs = make_inputs([1.0, 1.0], [0.0, 0.0], entropy=vector([1.0, 2.0]).requires_grad_())
    run(inputs, PolicyLossConfig(entropy_coef=0.5)).loss.backward()
    assert inputs.entropy.grad.tolist() == [-0.25, -0.25]


def test_decoupled_ppo_clips_against_the_proximal_and_weighs_by_the_behaviour_policy():
    # ratio to the proximal policy 1.5 (clipped to 1.2), proximal to behaviour 0.5 and 4 (cut to 2)
    inputs = make_inputs(
        [1.5, 1.5],
        [1.0, 1.0],
        behaviour_log_probs=vector([-1.0 + math.log(2), -1.0 - math.log(4)]),
        rollout_log_probs=vector([-9.0, -9.0]),
    )
    out = run(inputs, off_policy=OffPolicyConfig(use_decoupled_ppo=True))
    assert out.loss.item() == pytest.approx(-(1.2 * 0.5 + 1.2 * 2.0) / 2)


def test_without_kept_weights_the_engine_is_the_behaviour_policy():
    inputs = make_inputs([1.0], [1.0], rollout_log_probs=vector([-1.0 + math.log(2)]))
    out = run(inputs, off_policy=OffPolicyConfig(use_decoupled_ppo=True))
    assert out.loss.item() == pytest.approx(-0.5)


def test_rejection_leaves_tokens_out_of_the_loss_but_not_of_its_denominator():
    rollout = vector([-1.0, -1.0 - math.log(9)])
    inputs = make_inputs([1.0, 1.0], [1.0, 1.0], rollout_log_probs=rollout)
    out = run(inputs, off_policy=OffPolicyConfig(use_rs=True, rs_upper_bound=2.0))
    assert out.loss.item() == pytest.approx(-1 / 2)
    assert out.metrics["rs_mask_fraction"].item() == pytest.approx(1 / 2)


def test_mismatch_is_reported_without_being_corrected():
    rollout = vector([-1.0, -1.0 - math.log(9)])
    inputs = make_inputs([1.0, 1.0], [1.0, 1.0], rollout_log_probs=rollout)
    out = run(inputs, off_policy=OffPolicyConfig(get_mismatch_metrics=True))
    assert out.loss.item() == pytest.approx(-1.0)
    assert out.metrics["tis"].item() == pytest.approx((1 + 9) / 2)
    assert "mismatch_k3" in out.metrics


def test_weights_that_are_only_reported_leave_no_token_out_beside_rejection():
    # ratios 1, 3 and 9: the weights' mask would keep the first, rejection keeps the first two
    rollout = vector([-1.0, -1.0 - math.log(3), -1.0 - math.log(9)])
    inputs = make_inputs([1.0] * 3, [1.0, 2.0, 4.0], rollout_log_probs=rollout)
    settings = OffPolicyConfig(tis_mode="mask", tis_clip=2.0, use_rs=True, rs_upper_bound=5.0)
    for reported in (False, True):
        out = run(inputs, off_policy=replace(settings, get_mismatch_metrics=reported))
        assert out.loss.item() == pytest.approx(-(1.0 + 2.0) / 3)
        assert ("tis" in out.metrics) == reported
    assert out.metrics["tis_clipfrac"].item() == pytest.approx(2 / 3)
    applied = run(inputs, off_policy=replace(settings, use_tis=True))
    assert applied.loss.item() == pytest.approx(-1.0 / 3)


def test_a_term_without_a_coefficient_is_reported_and_no_part_of_the_loss():
    vectors = {"entropy": vector([math.inf]), "ref_log_probs": vector([-math.inf])}
    inputs = make_inputs([1.0], [2.0], **vectors)
    config = PolicyLossConfig(use_kl_loss=True, kl_loss_coef=0.0, kl_loss_type="k1")
    out = run(inputs, config)
    assert out.loss.item() == -2.0
    assert out.metrics["entropy_loss"].item() == math.inf
    assert out.metrics["kl_loss"].item() == math.inf


def test_no_metric_holds_on_to_the_graph():
    vectors = {
        name: vector([-1.5, -1.2]) for name in ("entropy", "ref_log_probs", "rollout_log_probs")
    }
    inputs = make_inputs([1.1, 0.7], [1.0, -1.0], **vectors)
    config = PolicyLossConfig(
        entropy_coef=0.1, use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type="k3"
    )
    out = run(inputs, config, OffPolicyConfig(use_tis=True, use_rs=True, use_opsm=True))
    assert {"loss", "pg_loss", "kl_loss", "ppo_kl", "ois"} <= set(out.metrics)
    assert out.loss.requires_grad
    assert not any(x.requires_grad for x in out.metrics.values())


@pytest.mark.parametrize("config", [CLIP, GSPO, CISPO, SAPO])
def test_cutting_the_samples_over_microbatches_changes_nothing(config):
    torch.manual_seed(1)
    lengths = [3, 5, 1, 4]
    cuts = dict(zip(range(4), torch.arange(13).split(lengths), strict=True))
    ratios, advantages = torch.rand(13) + 0.5, torch.randn(13)

    def part(rows):
        places = torch.cat([cuts[row] for row in rows])
        tokens = make_tokens([lengths[row] for row in rows], denominators=13.0)
        return make_inputs(ratios[places].tolist(), advantages[places].tolist(), tokens=tokens)

    off_policy = OffPolicyConfig(use_opsm=True)
    once = run(part([0, 1, 2, 3]), config, off_policy)
    parts = [run(part(rows), config, off_policy) for rows in ([2, 0], [1, 3])]
    assert sum(p.loss for p in parts).item() == pytest.approx(once.loss.item())
    for name, value in once.metrics.items():
        assert sum(p.metrics[name] for p in parts).item() == pytest.approx(value.item())


def test_reported_means_are_means_whatever_the_loss_divides_by():
    entropy = vector([2.0, 4.0])
    for below in (1.0, 2.0, 1000.0):
        tokens = make_tokens([2], denominators=below)
        out = run(make_inputs([1.0, 1.0], [1.0, 1.0], tokens=tokens, entropy=entropy))
        assert WEIGHT in out.metrics
        sums = {name: x.item() / 3 for name, x in out.metrics.items()}  # a step's divisor
        found = finish_metrics(sums)
        assert found["entropy_loss"] == pytest.approx(3.0)
        assert found["pg_loss"] == pytest.approx(-2 / below / 3)
        assert WEIGHT not in found


FAR = [150.0, -150.0, 150.0, -150.0]


@pytest.mark.parametrize("surrogate", ["clip", "gspo", "cispo", "sapo"])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "low_var_kl"])
@pytest.mark.parametrize("off_policy", [OffPolicyConfig(), OffPolicyConfig(use_rs=True)])
def test_ratios_beyond_float32_poison_no_gradient(surrogate, kind, off_policy):
    # a float32 holds exp(88); one response each, of either advantage
    log_probs = torch.full((5,), -160.0).requires_grad_()
    far = log_probs.detach() + torch.tensor([*FAR, 0.0])
    config = PolicyLossConfig(
        policy_surrogate=surrogate,
        use_kl_loss=True,
        kl_loss_coef=0.1,
        kl_loss_type=kind,
        use_unbiased_kl=True,
    )
    inputs = LossInputs(
        make_tokens([1] * 5),
        log_probs,
        old_log_probs=far,
        advantages=torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0]),
        ref_log_probs=far.flip(0),
        rollout_log_probs=log_probs.detach(),
    )
    out = run(inputs, config, off_policy)
    out.loss.backward()
    assert torch.isfinite(log_probs.grad).all()
    assert log_probs.grad[4] != 0
    assert all(torch.isfinite(x) for name, x in out.metrics.items() if "ppl" not in name)


def test_a_clipped_token_has_no_gradient_however_far_it_went():
    log_probs = torch.tensor([-1.0, -1.0]).requires_grad_()
    inputs = LossInputs(
        make_tokens([2]), log_probs, torch.tensor([-101.0, -1.0]), torch.tensor([1.0, 1.0])
    )
    run(inputs).loss.backward()
    assert log_probs.grad.tolist() == [0.0, -1.0]
