"""The losses and advantages that TRL has too, run by TRL on the same numbers."""

import os
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from slime_core.advantages.groups import Grouping, decoupled, group_relative, leave_one_out
from slime_core.batch import LossInputs, PairInputs
from slime_core.config.algorithm import PolicyLossConfig, PreferenceConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.losses.policy import policy_loss
from slime_core.losses.preference import dpo_loss, reward_model_loss
from slime_core.reduce import LocalReduce
from slime_testing.loss_case import vector
from slime_testing.ragged_case import Ragged
from slime_testing.trl_case import arithmetic, padded

ALONE = LocalReduce()
SETTINGS = {"output_dir": "unused", "use_cpu": True, "report_to": "none"}
ROLLOUTS = SETTINGS | {"num_generations": 3, "per_device_train_batch_size": 6}
AGREE = {"rtol": 1e-6, "atol": 1e-9}

# Two prompts, three responses each: a tool's words in the middle, one token, nothing trained on.
STEP = Ragged(
    (
        (1.0, 1.0, 1.0, 1.0, 1.0),
        (1.0, 0.0, 0.0, 1.0),
        (1.0,),
        (1.0, 1.0, 1.0),
        (0.0, 0.0),
        (1.0, 1.0, 1.0, 0.0, 1.0, 1.0),
    ),
    tuple(range(6)),
    seed=5,
)
MASK = torch.tensor([flag for mask in STEP.masks for flag in mask])
ADVANTAGES = vector([1.5, -0.5, -1.0, 0.25, 2.0, -0.75])
LENGTHS = torch.tensor(STEP.lengths)
NAMES = ("log_probs", "old_log_probs", "ref_log_probs", "rollout_log_probs", "entropy")
# TRL keeps an engine's log-probabilities in float32: these numbers are exact in both.
VECTORS = {name: (x * 1024).round() / 1024 for name, x in STEP.vectors(*NAMES).items()}


@pytest.fixture(scope="module")
def trl():
    """Imported here: it takes seconds, and sets up what only it needs."""
    with mock.patch.dict(os.environ):
        import trl

        yield trl


def rows(name):
    return padded(VECTORS[name], STEP.lengths)


def ours(config, off_policy=None, *, constant=7.0, advantages=ADVANTAGES, **vectors):
    """Loss of the step and its gradient, a row per response."""
    tokens, divisor = STEP.whole(config.loss_aggregation, constant=constant)
    given = VECTORS | vectors
    leaf = given["log_probs"].clone().requires_grad_()
    inputs = LossInputs(
        tokens,
        **{**given, "log_probs": leaf},
        advantages=torch.repeat_interleave(advantages, LENGTHS),
    )
    out = policy_loss(inputs, config, off_policy or OffPolicyConfig(), ALONE)
    (gradient,) = torch.autograd.grad(out.loss / divisor, leaf)
    return (out.loss / divisor).detach(), padded(gradient, STEP.lengths)


def grpo(trl, **settings):
    """TRL's trainer of that name."""
    args = trl.GRPOConfig(**ROLLOUTS, max_completion_length=7, **settings)
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    return arithmetic(
        trl.GRPOTrainer,
        args,
        epsilon_low=args.epsilon,
        epsilon_high=high,
        _entropy_bonus_enabled=args.entropy_coef != 0,
    )


def theirs(trainer, *, log_probs=None, **inputs):
    """Loss and gradient that TRL computes for the same step."""
    leaf = rows("log_probs") if log_probs is None else log_probs
    leaf = leaf.clone().requires_grad_()
    batch = {
        "prompt_ids": torch.ones(6, 1).long(),
        "prompt_mask": torch.ones(6, 1).long(),
        "completion_ids": padded(torch.ones(len(MASK)).long(), STEP.lengths),
        "completion_mask": padded(torch.ones(len(MASK)).long(), STEP.lengths),
        "tool_mask": padded(MASK.long(), STEP.lengths),
        "advantages": ADVANTAGES,
        "old_per_token_logps": rows("old_log_probs"),
        "ref_per_token_logps": rows("ref_log_probs"),
        "num_items_in_batch": MASK.sum(),
    }
    model = SimpleNamespace(log_probs=leaf, entropy=rows("entropy"))
    loss = trainer._compute_loss(model, batch | inputs)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def agree(found, expected):
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y.to(x), **AGREE)
    assert expected[0].abs() > 1e-3
    assert (expected[1] != 0).sum() > 2


CASES = {
    "grpo": ({"loss_type": "grpo"}, {"loss_aggregation": "sample"}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"loss_aggregation": "constant"}),
    "bnpo": ({"loss_type": "bnpo"}, {"loss_aggregation": "token"}),
    "dapo": (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"loss_aggregation": "token", "eps_clip_high": 0.28},
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1},
        {
            "policy_surrogate": "gspo",
            "loss_aggregation": "sample",
            "eps_clip": 0.1,
            "eps_clip_high": 0.1,
        },
    ),
    "gspo over tokens": (
        {"loss_type": "dapo", "importance_sampling_level": "sequence"},
        {"policy_surrogate": "gspo", "loss_aggregation": "token"},
    ),
    "gspo summed over sequences (LUSPO)": (
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"policy_surrogate": "gspo", "loss_aggregation": "sequence-sum"},
    ),
    # TRL's bound is the ratio itself, and there is none from below
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.3},
        {
            "policy_surrogate": "cispo",
            "loss_aggregation": "token",
            "eps_clip": 1.0,
            "eps_clip_high": 0.3,
        },
    ),
    "sapo": (
        {"loss_type": "sapo", "sapo_temperature_neg": 1.4, "sapo_temperature_pos": 0.9},
        {
            "policy_surrogate": "sapo",
            "loss_aggregation": "sample",
            "sapo_temperature_positive": 0.9,
            "sapo_temperature_negative": 1.4,
        },
    ),
    "dual clip": (
        {"loss_type": "grpo", "delta": 1.5},
        {"loss_aggregation": "sample", "eps_clip_c": 1.5},
    ),
    "kl": (
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
        {
            "loss_aggregation": "sample",
            "use_kl_loss": True,
            "kl_loss_coef": 0.3,
            "kl_loss_type": "k3",
        },
    ),
    "unbiased kl": (
        {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": True},
        {
            "loss_aggregation": "token",
            "use_kl_loss": True,
            "kl_loss_coef": 0.3,
            "kl_loss_type": "k3",
            "use_unbiased_kl": True,
        },
    ),
    "entropy bonus": (
        {"loss_type": "bnpo", "entropy_coef": 0.2},
        {"loss_aggregation": "token", "entropy_coef": 0.2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_policy_losses_are_those_of_trl(trl, name):
    settings, config = CASES[name]
    agree(ours(PolicyLossConfig(**config)), theirs(grpo(trl, **settings)))


def test_every_policy_loss_of_trl_is_told_apart_by_these_numbers(trl):
    losses = [theirs(grpo(trl, **settings))[0].item() for settings, _ in CASES.values()]
    assert len({round(x, 5) for x in losses}) == len(losses)


@pytest.mark.parametrize("delta", [0.0, 0.1])
def test_the_off_policy_sequence_mask_is_that_of_trl(trl, delta):
    trainer = grpo(trl, loss_type="grpo", off_policy_mask_threshold=delta)
    config = PolicyLossConfig(loss_aggregation="sample")
    agree(ours(config, OffPolicyConfig(use_opsm=True, opsm_delta=delta)), theirs(trainer))


def scored(trainer, rewards, *, old=None, rollout=None):
    """What TRL makes of generated responses: advantages, and weights against the engine."""
    trainer.model.log_probs = old
    trainer.given_rewards = rewards
    trainer.reward_weights = torch.ones(rewards.shape[1], dtype=rewards.dtype)
    trainer.reward_funcs = trainer.reward_func_names = [f"r{i}" for i in range(rewards.shape[1])]
    ids = [[1] * length for length in STEP.lengths]
    flags = [[int(flag) for flag in mask] for mask in STEP.masks]
    engine = None
    if rollout is not None:
        engine = [row.tolist() for row in rollout.split(STEP.lengths)]
    prompts = [[1]] * 6
    if type(trainer).__mro__[1].__name__ == "RLOOTrainer":
        trainer.generated = (prompts, ids, [""] * 6)
    else:
        trainer.generated = (prompts, ids, flags, [""] * 6, engine, {}, None, None)
    return trainer._generate_and_score_completions([{"prompt": ""}] * 6)


@pytest.mark.parametrize(
    ("mode", "bounds", "settings"),
    [
        ("token_truncate", (None, 1.3), {"tis_mode": "truncate"}),
        ("token_truncate", (0.8, 1.3), {"tis_mode": "clip"}),
        ("token_mask", (0.8, 1.3), {"tis_mode": "mask"}),
        ("sequence_truncate", (None, 1.3), {"tis_mode": "truncate", "tis_level": "sequence"}),
        ("sequence_truncate", (0.8, 1.3), {"tis_mode": "clip", "tis_level": "sequence"}),
        ("sequence_mask", (0.6, 1.7), {"tis_mode": "mask", "tis_level": "sequence"}),
    ],
)
def test_corrections_are_those_of_trl(trl, mode, bounds, settings):
    low, high = bounds
    trainer = grpo(
        trl,
        loss_type="dapo",
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=low,
        vllm_importance_sampling_clip_max=high,
    )
    trainer.use_vllm = True
    batch = scored(
        trainer,
        torch.zeros(6, 1, dtype=torch.float64),
        old=rows("old_log_probs"),
        rollout=VECTORS["rollout_log_probs"],
    )
    chosen = ("importance_sampling_ratio", "num_items_in_batch", "old_per_token_logps", "tool_mask")
    expected = theirs(trainer, **{name: batch[name] for name in chosen})
    off_policy = OffPolicyConfig(
        use_tis=True, tis_clip=high, tis_clip_low=0.0 if low is None else low, **settings
    )
    agree(ours(PolicyLossConfig(loss_aggregation="token"), off_policy), expected)
    assert batch["importance_sampling_ratio"].unique().numel() > 2


# advantages

GROUPS = Grouping(
    torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6), torch.ones(6, dtype=torch.bool)
)
# Far apart: the 1e-4 that TRL adds to a deviation, and our 1e-6, are lost beside them.
REWARDS = vector([1e5, 0.0, 3e5, -2e5, 5e5, 1e5])


@pytest.mark.parametrize("scale", ["group", "none"])
def test_the_advantages_of_grpo_and_dr_grpo_are_those_of_trl(trl, scale):
    batch = scored(grpo(trl, scale_rewards=scale), REWARDS[:, None])
    found = group_relative(REWARDS, GROUPS, normalize_std=scale == "group")
    torch.testing.assert_close(found, batch["advantages"], **AGREE)


def test_the_sum_of_normalised_rewards_is_that_of_trl(trl):
    rewards = torch.stack([REWARDS, REWARDS.flip(0) * 2 + vector([0.0, 3e5, 0, 0, 0, 9e5])], 1)
    batch = scored(grpo(trl, multi_objective_aggregation="normalize_then_sum"), rewards)
    summed = decoupled(rewards.T, (1.0, 1.0), GROUPS)
    # over samples, where ours whitens over trained tokens
    expected = (summed - summed.mean()) / (summed.std() + 1e-4)
    torch.testing.assert_close(batch["advantages"], expected, **AGREE)


def rloo(trl):
    args = trl.RLOOConfig(**ROLLOUTS, beta=0.0)
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    return arithmetic(trl.RLOOTrainer, args, epsilon_low=args.epsilon, epsilon_high=high)


def test_the_advantages_of_rloo_are_those_of_trl(trl):
    rewards = vector([1.0, 0.0, 0.25, -2.0, 5.0, 0.5])
    batch = scored(rloo(trl), rewards[:, None], old=rows("old_log_probs"))
    torch.testing.assert_close(leave_one_out(rewards, GROUPS), batch["advantages"], **AGREE)


def sequence_sums(x):
    return torch.stack([row.sum() for row in x.split(STEP.lengths)])


def test_the_gradient_of_rloo_on_policy_is_that_of_trl(trl):
    # TRL weighs a response with the product of its ratios: at the old policy the gradients agree
    expected = theirs(
        rloo(trl),
        old_logps=sequence_sums(VECTORS["log_probs"] * MASK),
        completion_mask=padded(MASK.long(), STEP.lengths),
    )
    config = PolicyLossConfig(loss_aggregation="sequence-sum")
    _, found = ours(config, old_log_probs=VECTORS["log_probs"])
    torch.testing.assert_close(found, expected[1], **AGREE)


def test_the_clipped_loss_of_rloo_is_that_of_trl_where_a_response_is_one_token(trl):
    # one trained token in each response: the first
    first = torch.cat([torch.eye(n, dtype=torch.float64)[0] for n in STEP.lengths])
    expected = theirs(
        rloo(trl),
        old_logps=sequence_sums(VECTORS["old_log_probs"] * first),
        completion_mask=padded(first.long(), STEP.lengths),
    )
    masks = tuple(tuple(float(i == 0) for i in range(n)) for n in STEP.lengths)
    step = replace(STEP, masks=masks)
    tokens, divisor = step.whole("sequence-sum")
    leaf = VECTORS["log_probs"].clone().requires_grad_()
    inputs = LossInputs(
        tokens, leaf, VECTORS["old_log_probs"], torch.repeat_interleave(ADVANTAGES, LENGTHS)
    )
    loss = policy_loss(inputs, PolicyLossConfig(), OffPolicyConfig(), ALONE).loss / divisor
    (gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(loss.detach(), expected[0], **AGREE)
    torch.testing.assert_close(padded(gradient, step.lengths), expected[1], **AGREE)


# preferences: the first three responses are chosen over the last three

PAIRS, CHOSEN = torch.arange(6) % 3, torch.arange(6) < 3


def pair_inputs(scores, step, reference=None):
    return PairInputs(step.tokens(), scores, PAIRS, CHOSEN, reference)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
def test_the_losses_over_pairs_are_those_of_trl(trl, kind):
    args = trl.DPOConfig(**SETTINGS, beta=0.4, loss_type=[kind])
    trainer = arithmetic(
        trl.DPOTrainer,
        args,
        loss_types=args.loss_type,
        loss_weights=[1.0],
        precompute_ref_logps=True,
    )
    leaf = VECTORS["log_probs"].clone().requires_grad_()
    outputs = {
        "log_probs": padded(leaf * MASK, STEP.lengths),
        "entropy": rows("entropy"),
        "mean_logits": rows("entropy"),
        "is_top1": rows("entropy") > 0,
    }
    reference = sequence_sums(VECTORS["ref_log_probs"] * MASK)
    # one token of prompt
    mask = torch.nn.functional.pad(padded(MASK.long(), STEP.lengths), (1, 0))
    batch = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[:3],
        "ref_rejected_logps": reference[3:],
    }
    loss = trainer._compute_loss(lambda **_: SimpleNamespace(**outputs), batch, False)
    (expected,) = torch.autograd.grad(loss, leaf)
    inputs = pair_inputs(leaf, STEP, VECTORS["ref_log_probs"])
    out = dpo_loss(inputs, PreferenceConfig(dpo_beta=0.4, dpo_loss_type=kind), ALONE)
    (found,) = torch.autograd.grad(out.loss / 3, leaf)
    torch.testing.assert_close(out.loss.detach() / 3, loss.detach(), **AGREE)
    torch.testing.assert_close(found, expected, **AGREE)
    if kind != "ipo":
        for ours_name, name in (("chosen", "chosen"), ("margin", "margins")):
            reported = trainer._metrics["train"][f"rewards/{name}"][0]
            assert out.metrics[f"rewards/{ours_name}"].item() / 3 == pytest.approx(reported)


def test_the_reward_models_loss_is_that_of_trl(trl):
    args = trl.RewardConfig(**SETTINGS)
    trainer = arithmetic(trl.RewardTrainer, args)
    leaf = VECTORS["log_probs"].clone().requires_grad_()
    ends = LENGTHS.cumsum(0) - 1
    outputs = SimpleNamespace(logits=leaf[ends][:, None])
    batch = {"input_ids": torch.ones(6, 1), "attention_mask": torch.ones(6, 1)}
    loss = trainer.compute_loss(lambda **_: outputs, batch)
    (expected,) = torch.autograd.grad(loss, leaf)
    out = reward_model_loss(pair_inputs(leaf, STEP), ALONE)
    (found,) = torch.autograd.grad(out.loss / 3, leaf)
    torch.testing.assert_close(out.loss.detach() / 3, loss.detach(), **AGREE)
    torch.testing.assert_close(found, expected, **AGREE)
    assert out.metrics["rewards/accuracy"].item() / 3 == pytest.approx(
        trainer._metrics["train"]["accuracy"][0]
    )
