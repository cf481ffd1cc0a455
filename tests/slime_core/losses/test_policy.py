import math
from dataclasses import replace

import pytest
import torch
from slime_core.batch import LossInputs
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.losses.importance import custom_importance
from slime_core.losses.policy import policy_loss
from slime_core.reduce import LocalReduce

GRPO, GSPO, CISPO = (AdvantageConfig(advantage_estimator=e) for e in ("grpo", "gspo", "cispo"))


def make_inputs(ratio, advantages, **changes):
    """One rollout of len(ratio) tokens whose new policy is ``ratio`` times the old one."""
    ratio = torch.tensor(ratio, dtype=torch.float64)
    n = len(ratio)
    old = torch.full((n,), -1.0, dtype=torch.float64)
    fields = {
        "log_probs": (old + ratio.log()).requires_grad_(),
        "old_log_probs": old,
        "advantages": torch.tensor(advantages, dtype=torch.float64),
        "mask": torch.ones(n, dtype=torch.float64),
        "denominators": torch.full((n,), float(n), dtype=torch.float64),
        "sample": torch.zeros(n, dtype=torch.long),
        "num_samples": 1,
    }
    return LossInputs(**{**fields, **changes})


def run(inputs, config=None, advantage=GRPO, off_policy=None):
    config = config or PolicyLossConfig()
    return policy_loss(inputs, config, advantage, off_policy or OffPolicyConfig(), LocalReduce())


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
        log_probs=log_probs.requires_grad_(),
        old_log_probs=old,
        advantages=torch.randn(n),
        mask=torch.ones(n),
        denominators=torch.full((n,), 7.0),
        sample=torch.zeros(n, dtype=torch.long),
        num_samples=1,
    )
    for advantage in (GRPO, GSPO, CISPO):
        out = run(inputs, advantage=advantage)
        assert out.metrics["ppo_kl"].item() == 0.0
        assert out.metrics["pg_clipfrac"].item() == 0.0


def test_gspo_gives_all_tokens_the_ratio_of_the_sequence():
    # geometric mean of 4, 1, 1 over the trained tokens (the last is not): 2; clipped to 1.2
    mask = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    inputs = make_inputs([4.0, 1.0, 9.0], [1.0] * 3, mask=mask)
    out = run(inputs, advantage=GSPO)
    assert out.loss.item() == pytest.approx(-1.2 * 2 / 3)
    inputs = make_inputs([4.0, 1.0, 9.0], [-1.0] * 3, mask=mask)
    assert run(inputs, advantage=GSPO).loss.item() == pytest.approx(2.0 * 2 / 3)


def test_cispo_by_hand():
    inputs = make_inputs([4.0, 0.5], [1.0, -2.0])
    out = run(inputs, PolicyLossConfig(eps_clip=1.0, eps_clip_high=1.0), CISPO)
    lp = [math.log(4) - 1, math.log(0.5) - 1]
    assert out.loss.item() == pytest.approx((-2 * lp[0] + 0.5 * 2 * lp[1]) / 2)
    out.loss.backward()
    assert inputs.log_probs.grad.tolist() == pytest.approx([-2 / 2, 0.5 * 2 / 2])
    assert out.metrics["pg_clipfrac"].item() == pytest.approx(0.5)


def test_truncated_importance_sampling_by_hand():
    rollout = torch.tensor([-1.0 - math.log(4), -1.0, -1.0 + math.log(2)], dtype=torch.float64)
    inputs = make_inputs([1.0, 1.1, 1.0], [1.0, 1.0, 1.0], rollout_log_probs=rollout)
    out = run(inputs, off_policy=OffPolicyConfig(use_tis=True, tis_clip=2.0, tis_clip_low=0.6))
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
    sample = torch.tensor([0, 0, 1, 1])
    inputs = make_inputs(
        [0.5, 0.5, 1.0, 1.0], [-1.0, 1.0, -1.0, -1.0], sample=sample, num_samples=2
    )
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
        denominators=1 / log_probs.detach().exp(),
    )
    run(inputs, config).loss.backward()
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("advantage", [GRPO, GSPO, CISPO])
def test_garbage_on_untrained_tokens_changes_neither_loss_nor_gradient(advantage):
    mask = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    options = {"mask": mask, "denominators": torch.full((3,), 2.0, dtype=torch.float64)}
    clean = make_inputs([1.1, 1.0, 0.9], [1.0, 0.0, -1.0], **options)
    dirty = make_inputs([1.1, 1.0, 0.9], [1.0, math.inf, -1.0], **options)
    bad = clean.log_probs.detach().clone()
    bad[1] = math.inf
    dirty = replace(dirty, log_probs=bad.requires_grad_())
    losses = [run(inputs, advantage=advantage).loss for inputs in (clean, dirty)]
    assert losses[0].item() == losses[1].item()
    for loss in losses:
        loss.backward()
    assert clean.log_probs.grad[[0, 2]].tolist() == dirty.log_probs.grad[[0, 2]].tolist()


@pytest.mark.parametrize("advantage", [GRPO, GSPO])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "low_var_kl"])
def test_gradients_are_those_of_finite_differences(advantage, kind):
    torch.manual_seed(0)
    config = PolicyLossConfig(
        eps_clip_c=3.0,
        entropy_coef=0.01,
        use_kl_loss=True,
        kl_loss_coef=0.3,
        kl_loss_type=kind,
        use_unbiased_kl=True,
    )
    off_policy = OffPolicyConfig(use_tis=True)
    old = torch.randn(6, dtype=torch.float64) - 2
    base = make_inputs([1.0] * 6, torch.randn(6).tolist())
    base = replace(
        base,
        old_log_probs=old,
        ref_log_probs=old - 0.1 * torch.randn(6, dtype=torch.float64),
        rollout_log_probs=old + 0.1 * torch.randn(6, dtype=torch.float64),
        sample=torch.tensor([0, 0, 1, 1, 1, 2]),
        num_samples=3,
        mask=torch.tensor([1.0, 1, 0, 1, 1, 1], dtype=torch.float64),
    )

    def loss(log_probs):
        inputs = replace(base, log_probs=log_probs)
        return policy_loss(inputs, config, advantage, off_policy, LocalReduce()).loss

    start = (old + 0.4 * torch.randn(6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (start,))


@pytest.mark.parametrize("advantage", [GRPO, GSPO])
def test_cutting_the_tokens_over_microbatches_changes_nothing(advantage):
    torch.manual_seed(1)
    lengths = [3, 5, 1, 4]
    sample = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    whole = make_inputs(
        (torch.rand(13) + 0.5).tolist(), torch.randn(13).tolist(), sample=sample, num_samples=4
    )

    def part(rows):
        pick = torch.isin(sample, torch.tensor(rows))
        tensors = ("log_probs", "old_log_probs", "advantages", "mask", "denominators", "sample")
        return replace(whole, **{name: getattr(whole, name)[pick] for name in tensors})

    off_policy = OffPolicyConfig(use_opsm=True)
    once = run(whole, advantage=advantage, off_policy=off_policy)
    parts = [run(part(r), advantage=advantage, off_policy=off_policy) for r in ([0, 2], [1, 3])]
    assert sum(p.loss for p in parts).item() == pytest.approx(once.loss.item())
    for name, value in once.metrics.items():
        assert sum(p.metrics[name] for p in parts).item() == pytest.approx(value.item())


def test_importance_weights_of_your_own(tmp_path):
    (tmp_path / "mis.py").write_text(
        "import torch\n"
        "def custom_tis(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, **kw):\n"
        "    first = torch.cat([torch.ones_like(loss_masks[0]), torch.zeros_like(loss_masks[1])])\n"
        "    masks = [loss_masks[0], loss_masks[1] * 0]\n"
        "    return pg_loss * args.scale, masks, {'mis_first': first}\n"
    )
    fn = custom_importance(str(tmp_path / "mis.py"), {"scale": 3.0})
    inputs = make_inputs([1.0, 1.0, 1.0], [1.0, 2.0, 4.0], sample=torch.tensor([0, 0, 1]))
    inputs = replace(inputs, num_samples=2, rollout_log_probs=inputs.old_log_probs - 1)
    for off_policy, expected in [
        (OffPolicyConfig(use_tis=True), -3 * (1 + 2) / 3),
        (OffPolicyConfig(get_mismatch_metrics=True), -(1 + 2 + 4) / 3),
    ]:
        out = policy_loss(
            inputs, PolicyLossConfig(), GRPO, off_policy, LocalReduce(), importance=fn
        )
        assert out.loss.item() == pytest.approx(expected)
        assert out.metrics["mis_first"].item() == pytest.approx(2 / 3)
