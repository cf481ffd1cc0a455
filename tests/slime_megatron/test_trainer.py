"""One trainer rank through iterations, checkpoints and accidents."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slime_core.config.algorithm import AdvantageConfig, PolicyLossConfig
from slime_core.config.model import ModelConfig
from slime_core.config.reference import ReferenceConfig
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

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


def a_broken_gradient(directory: str) -> tuple[str, bool, dict[str, float]]:
    import torch
    from slime_core.schedule.layout import ParallelLayout
    from slime_testing.trainer_case import make_batch, make_payload

    batch = make_batch()
    rewards = batch.rewards.clone()
    rewards[0] = torch.nan
    batch = replace(batch, rewards=rewards)
    said, metrics, moved = "", {}, False
    for flags in ((), ("--no-check-for-nan-in-loss-and-grad",)):
        trainer = make(directory, *flags)
        payload = make_payload(batch, ParallelLayout(), trainer._config.batch, 0)
        parameters = list(trainer._state.chunks[0].parameters())
        before = [p.detach().clone() for p in parameters]
        try:
            metrics = dict(trainer.train(0, payload))
        except FloatingPointError as error:
            said = str(error)
        moved |= any(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    return said, moved, metrics


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
)


def run_checks(rank: int, world: int, directory: str) -> dict[str, Any]:
    return {check.__name__: check(directory) for check in CHECKS}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = make_qwen3(tmp_path_factory.mktemp("model"))
    return run_on_ranks(1, run_checks, str(directory), megatron=True)[0]


def test_two_runs_with_one_seed_give_the_same_numbers(found: dict[str, Any]):
    assert found["two_runs_are_equal"]


def test_a_loaded_checkpoint_continues_bit_for_bit(found: dict[str, Any]):
    assert found["resuming_is_going_on"] == (True, 2)


def test_only_the_chosen_parameters_are_trained(found: dict[str, Any]):
    moved = found["only_norms_move"]
    assert moved
    assert all("layernorm" in name and "layers.0" not in name for name in moved)


def test_a_gradient_that_is_not_a_number_changes_nothing(found: dict[str, Any]):
    said, moved, metrics = found["a_broken_gradient"]
    assert "no weight was changed" in said
    assert not moved
    assert metrics["train/skipped_steps"] == 1.0


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
