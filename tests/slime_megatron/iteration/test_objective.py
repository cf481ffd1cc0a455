"""What has to be known before the first step, and what a step's loss is the mean over."""

from typing import Any

import pytest
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.config.reference import DistillationConfig
from slime_megatron.iteration.objective import OLD_ACTOR, REFERENCE, TEACHER, Objective
from slime_megatron.iteration.passes import Entropy


def objective(
    *,
    advantage: dict[str, Any] | None = None,
    off_policy: dict[str, Any] | None = None,
    distillation: dict[str, Any] | None = None,
    given: dict[str, Any] | None = None,
    **policy_loss: Any,
) -> Objective:
    return Objective(
        advantage=AdvantageConfig(**(advantage or {})),
        policy_loss=PolicyLossConfig(**policy_loss),
        off_policy=OffPolicyConfig(**(off_policy or {})),
        distillation=DistillationConfig(**(distillation or {})),
        **(given or {}),
    )


@pytest.mark.parametrize(
    ("wanted", "policies"),
    [
        ({}, ()),
        ({"use_kl_loss": True}, (REFERENCE,)),
        ({"advantage": {"kl_coef": 0.1}}, (REFERENCE,)),
        ({"distillation": {"use_opd": True, "opd_type": "megatron"}}, (TEACHER,)),
        ({"distillation": {"use_opd": True, "opd_type": "sglang"}}, ()),
        ({"distillation": {"use_opd": False, "opd_type": "megatron"}}, ()),
        ({"off_policy": {"keep_old_actor": True}}, (OLD_ACTOR,)),
        ({"loss_type": "dpo_loss"}, (REFERENCE,)),
        ({"loss_type": "sft_loss", "use_kl_loss": True}, ()),
        ({"loss_type": "rm_loss", "use_kl_loss": True}, ()),
        ({"given": {"role": "critic"}, "use_kl_loss": True}, ()),
    ],
)
def test_policies_are_asked_whose_log_probs_something_needs(
    wanted: dict[str, Any], policies: tuple[str, ...]
) -> None:
    assert objective(**wanted).kept_policies == policies


OLD: dict[str, Any] = {"keep_old_actor": True}
SAMPLED: dict[str, Any] = {"use_rollout_logprobs": True}


@pytest.mark.parametrize(
    ("wanted", "num_steps", "asked"),
    [
        ({}, 1, False),  # what the step itself finds is the old policy's
        ({}, 2, True),
        ({"advantage": {"kl_coef": 0.1}}, 1, True),
        ({"distillation": {"use_opd": True}}, 1, True),
        ({"off_policy": {"tis_batch_normalize": True}}, 1, True),
        ({"given": {"custom_loss": len}}, 1, True),
        ({"given": {"postprocess": len}}, 1, True),
        ({"off_policy": SAMPLED}, 2, False),
        ({"off_policy": SAMPLED | {"use_rs": True}}, 1, False),
        ({"off_policy": SAMPLED | {"use_rs": True}}, 2, True),
        ({"off_policy": SAMPLED | {"get_mismatch_metrics": True}}, 2, True),
        ({"off_policy": OLD}, 2, False),
        ({"off_policy": OLD | {"use_decoupled_ppo": True}}, 2, True),
        ({"off_policy": SAMPLED, "use_rollout_entropy": True}, 1, True),
        ({"loss_type": "sft_loss", "use_rollout_entropy": True}, 2, False),
        ({"given": {"role": "critic"}}, 2, False),
    ],
)
def test_the_policy_is_asked_before_the_first_step_where_that_does_not_find_the_same(
    wanted: dict[str, Any], num_steps: int, asked: bool
) -> None:
    assert objective(**wanted).needs_own_scores(num_steps) is asked


def test_advantages_are_estimated_unless_that_is_switched_off_or_nothing_was_sampled() -> None:
    assert objective().estimates
    assert not objective(advantage={"compute_advantages_and_returns": False}).estimates
    assert not objective(loss_type="sft_loss").estimates


def test_entropy_is_trained_with_a_coefficient_and_reported_of_the_policys_own_loss() -> None:
    assert objective().step_entropy is Entropy.REPORT
    assert objective(entropy_coef=0.01).step_entropy is Entropy.TRAIN
    assert objective(loss_type="custom_loss", entropy_coef=0.01).step_entropy is Entropy.NONE


def test_preferences_are_means_over_pairs_whatever_a_policys_loss_is_the_mean_over() -> None:
    assert objective(loss_aggregation="token").aggregation == "token"
    for loss_type in ("dpo_loss", "rm_loss"):
        assert objective(loss_type=loss_type, loss_aggregation="token").aggregation == "rollout"
