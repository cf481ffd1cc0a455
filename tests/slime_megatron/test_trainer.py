"""One trainer rank through iterations, checkpoints and accidents."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slime_core.config.algorithm import (
    AdvantageConfig,
    CriticConfig,
    OptimizerConfig,
    PolicyLossConfig,
)
from slime_core.config.model import ModelConfig
from slime_core.config.off_policy import OffPolicyConfig
from slime_core.config.reference import DistillationConfig, ReferenceConfig
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3
from slime_testing.two_devices import train_on_device, two_devices

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

KL = PolicyLossConfig(use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type="k3")


def make(directory: str, *argv: str, load: Path | None = None, **sections: Any) -> Any:
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_config

    trainer = TrainerRank(make_config(Path(directory), *argv, **sections), 0, 1)
    trainer.initialize(load=load)
    return trainer


def one_iteration(trainer: Any, iteration: int = 0, *, seed: int = 0) -> dict[str, float]:
    from slime_core.schedule.layout import ParallelLayout
    from slime_testing.trainer_case import make_batch, make_payload

    batch_config = trainer._config.batch
    payload = make_payload(make_batch(seed=seed), ParallelLayout(), batch_config, 0)
    return dict(trainer.train(iteration, payload))


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: x for name, x in metrics.items() if not name.startswith("perf/")}


def two_runs_are_equal(directory: str) -> bool:
    runs: list[Any] = []
    for _ in range(2):
        trainer = make(directory, policy_loss=KL)
        runs.append([numbers(one_iteration(trainer, i, seed=i)) for i in range(3)])
    return runs[0] == runs[1]


def resuming_is_going_on(directory: str) -> tuple[bool, int]:
    trainer = make(directory, "--use-distributed-optimizer", policy_loss=KL)
    for i in range(2):
        one_iteration(trainer, i, seed=i)
    checkpoint = Path(directory, "checkpoint")
    checkpoint.mkdir()
    trainer.save(checkpoint, 1)
    wanted = numbers(one_iteration(trainer, 2, seed=2))
    again = make(directory, "--use-distributed-optimizer", policy_loss=KL, load=checkpoint)
    return numbers(one_iteration(again, 2, seed=2)) == wanted, again.iteration


def only_norms_move(directory: str) -> list[str]:
    trainer = make(
        directory,
        model=ModelConfig(
            hf_checkpoint=directory,
            only_train_params_name_list=("layernorm",),
            freeze_params_name_list=(r"layers\.0",),
        ),
    )
    chunk = trainer._state.chunks[0]
    before = {name: p.detach().clone() for name, p in chunk.named_parameters()}
    one_iteration(trainer)
    return [name for name, p in chunk.named_parameters() if not (p == before[name]).all()]


def a_broken_gradient(directory: str) -> tuple[str, bool, list[float], float]:
    import torch
    from slime_core.schedule.layout import ParallelLayout
    from slime_testing.trainer_case import make_batch, make_payload

    batch = make_batch()
    rewards = batch.rewards.clone()
    rewards[0] = 3e38  # finite, but what follows from it is not
    batch = replace(batch, rewards=rewards)
    said, skipped, moved = "", [], False
    lenient = OptimizerConfig(max_skipped_steps=1)
    for flags in ((), ("--no-check-for-nan-in-loss-and-grad",)):
        trainer = make(directory, *flags, optimizer=lenient)
        payload = make_payload(batch, ParallelLayout(), trainer._config.batch, 0)
        parameters = list(trainer._state.chunks[0].parameters())
        before = [p.detach().clone() for p in parameters]
        try:
            for _ in range(3):
                skipped.append(trainer.train(0, payload)["train/num_skipped_steps"])
        except FloatingPointError as error:
            said = str(error)
        moved |= any(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    taken = trainer.train(0, make_payload(make_batch(), ParallelLayout(), trainer._config.batch, 0))
    return said, moved, skipped, taken["train/num_skipped_steps"]


def the_reference_follows(directory: str) -> list[float]:
    reference = ReferenceConfig(ref_update_interval=2)
    trainer = make(directory, policy_loss=KL, reference=reference)
    return [one_iteration(trainer, i)["train/kl_loss"] for i in range(4)]


def another_reference(directory: str) -> float:
    other = make_qwen3(Path(directory, "other"), seed=5)
    trainer = make(directory, policy_loss=KL, reference=ReferenceConfig(ref_load=str(other)))
    return one_iteration(trainer)["train/kl_loss"]


def bf16_is_close(directory: str) -> tuple[float, float]:
    def run(*flags: str) -> dict[str, float]:
        trainer = make(directory, "--use-distributed-optimizer", *flags, policy_loss=KL)
        metrics = one_iteration(trainer)
        assert metrics["train/kl_loss"] == 0.0 == metrics["train/ppo_kl"]
        return metrics

    full, half = run(), run("--bf16")
    name = "rollout/log_probs"
    return half[name] / full[name] - 1, half["train/grad_norm"] / full["train/grad_norm"] - 1


def the_penalty_needs_the_reference(directory: str) -> dict[str, float]:
    advantage = AdvantageConfig(
        advantage_estimator="reinforce_plus_plus", kl_coef=0.1, normalize_advantages=True
    )
    return one_iteration(make(directory, advantage=advantage))


def fine_tuning_learns(directory: str) -> list[dict[str, float]]:
    trainer = make(directory, policy_loss=PolicyLossConfig(loss_type="sft_loss"))
    return [one_iteration(trainer, i) for i in range(4)]


def an_updated_reference_is_saved(directory: str) -> bool:
    def start(load: Path | None = None) -> Any:
        return make(
            directory, policy_loss=KL, reference=ReferenceConfig(ref_update_interval=2), load=load
        )

    trainer = start()
    for i in range(3):
        one_iteration(trainer, i, seed=i)
    checkpoint = Path(directory, "with-reference")
    checkpoint.mkdir()
    trainer.save(checkpoint, 2)
    wanted = numbers(one_iteration(trainer, 3, seed=3))
    return numbers(one_iteration(start(checkpoint), 3, seed=3)) == wanted


def a_teacher_pulls(directory: str) -> list[dict[str, float]]:
    teacher = make_qwen3(Path(directory, "teacher"), seed=9)
    distillation = DistillationConfig(
        use_opd=True, opd_type="megatron", opd_teacher_load=str(teacher)
    )
    trainer = make(directory, distillation=distillation)
    return [one_iteration(trainer, i) for i in range(2)]


def behaviour_and_proximal_policy_differ(directory: str) -> list[dict[str, float]]:
    off_policy = OffPolicyConfig(keep_old_actor=True, use_decoupled_ppo=True)
    trainer = make(directory, off_policy=off_policy)
    found: list[dict[str, float]] = []
    for i in range(3):
        found.append(one_iteration(trainer, i))
        if i == 1:
            trainer.publish(2, senders=())
    return found


def ratios_against_the_old_actor(directory: str) -> list[float]:
    trainer = make(directory, off_policy=OffPolicyConfig(keep_old_actor=True))
    return [one_iteration(trainer, i)["train/ppo_kl"] for i in range(2)]


def an_actor_waits_for_its_critic(directory: str) -> tuple[list[Any], bool]:
    from slime_core.schedule.layout import ParallelLayout
    from slime_testing.trainer_case import make_batch, make_payload

    config = {
        "advantage": AdvantageConfig(advantage_estimator="ppo", gamma=0.9, lambd=0.8),
        "critic": CriticConfig(num_critic_only_steps=1),
    }
    critic, actor = (make(directory, role=role, **config) for role in ("critic", "actor"))
    payload = make_payload(make_batch(), ParallelLayout(), actor._config.batch, 0)
    found: list[Any] = []
    for i in range(3):
        values = critic.values(payload)
        of_actor = dict(actor.train(i, payload, {"values": values}))
        given = {"values": values, "returns": actor.returns()}
        found.append((of_actor, dict(critic.train(i, payload, given))))
    checkpoint = Path(directory, "critic")
    checkpoint.mkdir()
    critic.save(checkpoint, 2)
    again = make(directory, role="critic", load=checkpoint, **config)
    wanted, values = critic.values(payload), again.values(payload)
    return found, all((values[row] == wanted[row]).all() for row in wanted)


def moments_are_forgotten(directory: str) -> dict[str, list[float]]:
    cases = {
        "kept": OptimizerConfig(),
        "reset": OptimizerConfig(reset_optimizer_states=True),
        "stateless": OptimizerConfig(use_stateless_adam=True),
    }
    means: dict[str, list[float]] = {}
    for name, optimizer in cases.items():
        trainer = make(directory, "--use-distributed-optimizer", optimizer=optimizer)
        means[name] = [one_iteration(trainer, i)["rollout/log_probs"] for i in range(3)]
    return means


def a_reward_model_for_transformers(directory: str) -> tuple[float, dict[str, float]]:
    import torch
    from slime_core.schedule.layout import ParallelLayout
    from slime_testing.trainer_case import make_batch, make_payload
    from transformers import AutoModelForSequenceClassification

    trainer = make(directory, policy_loss=PolicyLossConfig(loss_type="rm_loss"))
    batch = make_batch(pairs=True)
    config = trainer._config.batch
    payload = make_payload(batch, ParallelLayout(), config, 0, whole_rollouts=True)
    for i in range(4):
        metrics = dict(trainer.train(i, payload))
    exported = Path(directory).with_name("reward-model")
    trainer.save_hf(exported)
    model = AutoModelForSequenceClassification.from_pretrained(exported, dtype=torch.float32)
    model.config.pad_token_id = None
    worst = 0.0
    for row, values in trainer.values(payload).items():
        tokens = batch.tokens.split()[row][None]
        with torch.no_grad():
            score = model(tokens).logits.item()
        worst = max(worst, abs(score - values[-1].item()))
    again = make(str(exported), policy_loss=PolicyLossConfig(loss_type="rm_loss"))
    assert all((x == again.values(payload)[r]).all() for r, x in trainer.values(payload).items())
    return worst, metrics


CHECKS: tuple[Callable[[str], Any], ...] = (
    two_runs_are_equal,
    resuming_is_going_on,
    only_norms_move,
    a_broken_gradient,
    the_reference_follows,
    another_reference,
    bf16_is_close,
    the_penalty_needs_the_reference,
    fine_tuning_learns,
    an_updated_reference_is_saved,
    a_teacher_pulls,
    behaviour_and_proximal_policy_differ,
    ratios_against_the_old_actor,
    an_actor_waits_for_its_critic,
    moments_are_forgotten,
    a_reward_model_for_transformers,
)


def run_checks(rank: int, world: int, directory: str) -> dict[str, Any]:
    train_on_device()
    with two_devices() as met:
        found = {check.__name__: check(directory) for check in CHECKS}
    return {**found, "met": met}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = make_qwen3(tmp_path_factory.mktemp("model"))
    return run_on_ranks(1, run_checks, str(directory), megatron=True)[0]


def test_tensors_of_the_host_never_meet_those_of_the_device(found: dict[str, Any]):
    assert found["met"] == []


def test_two_runs_with_one_seed_give_the_same_numbers(found: dict[str, Any]):
    assert found["two_runs_are_equal"]


def test_a_loaded_checkpoint_continues_bit_for_bit(found: dict[str, Any]):
    assert found["resuming_is_going_on"] == (True, 2)


def test_only_the_chosen_parameters_are_trained(found: dict[str, Any]):
    moved = found["only_norms_move"]
    assert moved
    assert all("layernorm" in name and "layers.0" not in name for name in moved)


def test_a_gradient_that_is_not_a_number_changes_nothing(found: dict[str, Any]):
    said, moved, skipped, afterwards = found["a_broken_gradient"]
    assert "2 steps in a row" in said
    assert "--max-skipped-steps 1" in said
    assert not moved
    assert skipped == [1.0, 1.0, 1.0, 1.0], "one with the check, three without"
    assert afterwards == 0.0


def test_the_reference_is_renewed_every_second_iteration(found: dict[str, Any]):
    first, second, third, fourth = found["the_reference_follows"]
    assert first == third == 0.0
    assert second > 0.0
    assert fourth > 0.0


def test_the_reference_can_be_another_model(found: dict[str, Any]):
    assert found["another_reference"] > 0.0


def test_bf16_follows_float32(found: dict[str, Any]):
    log_probs, grad_norm = found["bf16_is_close"]
    assert abs(log_probs) < 0.01
    assert abs(grad_norm) < 0.05


def test_a_penalty_in_the_reward_reads_both_policies(found: dict[str, Any]):
    metrics = found["the_penalty_needs_the_reference"]
    assert metrics["rollout/log_probs"] == metrics["rollout/ref_log_probs"]
    assert "perf/log_probs_time" in metrics


def test_fine_tuning_lowers_the_loss_without_asking_for_old_log_probs(found: dict[str, Any]):
    losses = [metrics["train/loss"] for metrics in found["fine_tuning_learns"]]
    assert losses == sorted(losses, reverse=True)
    assert not {"perf/log_probs_time", "train/ppo_kl"} & set(found["fine_tuning_learns"][0])


def test_a_reference_that_was_renewed_is_part_of_the_checkpoint(found: dict[str, Any]):
    assert found["an_updated_reference_is_saved"]


def test_distillation_pulls_the_policy_to_the_teacher(found: dict[str, Any]):
    before, after = found["a_teacher_pulls"]
    assert before["rollout/teacher_log_probs"] == after["rollout/teacher_log_probs"]
    assert before["rollout/teacher_log_probs"] != before["rollout/log_probs"]


def test_the_published_weights_are_the_behaviour_policy(found: dict[str, Any]):
    first, second, third = found["behaviour_and_proximal_policy_differ"]
    assert first["train/mismatch_k3"] == 0.0
    assert second["train/mismatch_k3"] > 0.0
    assert third["train/mismatch_k3"] == 0.0
    assert {x["train/ppo_kl"] for x in (first, second, third)} == {0.0}


def test_without_decoupling_the_ratio_is_against_the_old_actor(found: dict[str, Any]):
    first, second = found["ratios_against_the_old_actor"]
    assert first == 0.0 != second


def test_the_critic_learns_first_and_from_the_returns_of_the_actor(found: dict[str, Any]):
    iterations, same_after_loading = found["an_actor_waits_for_its_critic"]
    (actor, critic), (later_actor, later_critic), *_ = iterations
    assert "train/loss" not in actor
    assert "train/loss" in later_actor
    assert actor["rollout/values"] == 0.0 != later_actor["rollout/values"]
    assert critic["critic/returns"] == pytest.approx(actor["rollout/returns"])
    assert later_critic["critic/values"] == pytest.approx(later_actor["rollout/values"])
    assert same_after_loading


def test_moments_are_forgotten_before_an_iteration_or_a_step(found: dict[str, Any]):
    losses = found["moments_are_forgotten"]
    assert losses["reset"] == losses["stateless"]  # one step per iteration
    assert losses["kept"][:2] == losses["reset"][:2]
    assert losses["kept"][2] != losses["reset"][2]


def test_a_trained_reward_model_is_transformers_own(found: dict[str, Any]):
    worst, metrics = found["a_reward_model_for_transformers"]
    assert worst < 1e-5
    assert metrics["train/rewards/accuracy"] > 0.5
