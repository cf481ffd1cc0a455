"""Tensors of the host never meet tensors of the device, where only GPUs would notice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family
from slime_testing.two_devices import DEVICE, HOST, train_on_device, two_devices

FAMILIES = ("qwen3", "qwen3_moe", "glm4", "glm4_moe", "deepseek_v3")
FLAGS: Mapping[str, tuple[str, ...]] = {
    "qwen3_moe": ("--moe-grouped-gemm", "--moe-aux-loss-coeff=0.01", "--moe-z-loss-coeff=0.001"),
    "glm4_moe": ("--overlap-grad-reduce", "--overlap-param-gather"),
}


def test_the_question_where_a_tensor_is_has_two_answers() -> None:
    with two_devices():
        there = torch.ones(3, device=DEVICE)
        assert (there.device, (2 * there).device, torch.ones(3).device) == (DEVICE, DEVICE, HOST)
        assert there.cpu().device == torch.zeros(3).to(HOST).device == HOST
        assert torch.zeros(3).to(there).device == torch.zeros(3).cuda().device == DEVICE
        assert there.new_zeros(2).device == torch.empty_like(there).device == DEVICE


def test_a_move_to_the_other_side_is_a_copy_and_one_that_is_none_is_not() -> None:
    with two_devices():
        here = torch.zeros(3)
        there = here.to(DEVICE)
        there += 1
        assert here.tolist() == [0.0, 0.0, 0.0]
        assert there.to(DEVICE) is there


def test_what_a_gpu_refuses_is_found() -> None:
    with two_devices() as found:
        there, here = torch.ones(3, device=DEVICE, requires_grad=True), torch.ones(3)
        there + here
        torch.cat([there, here])
        here[torch.tensor([0, 1], device=DEVICE)]
        (there * torch.ones(3).to(DEVICE)).backward(torch.ones(3))
    assert [told.partition("(")[0] for told in found] == ["add", "cat", "index", "mul"]
    assert all(__file__ in told for told in found)


def test_what_a_gpu_takes_is_not() -> None:
    with two_devices() as found:
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        there * torch.tensor(2.0) + 1
        there[torch.tensor([0, 1])]
        there.copy_(here)
        here += there.cpu()
        torch.where(there > 0, there, 0.0).sum().item()
    assert found == []


def iterations(rank: int, world: int, directory: str) -> dict[str, list[str]]:
    """By family, what was found in two iterations, an export and a checkpoint between them."""
    from slime_core.config.algorithm import PolicyLossConfig
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    train_on_device()
    penalised = PolicyLossConfig(use_kl_loss=True, kl_loss_coef=0.1, entropy_coef=0.01)

    def run(family: str) -> list[str]:
        flags = ("--use-distributed-optimizer", "--bf16", *FLAGS.get(family, ()))
        config = make_config(Path(directory, family), *flags, policy_loss=penalised)
        payload = make_payload(make_batch(), ParallelLayout(dp=world), config.batch, rank)
        with two_devices() as found:
            trainer: Any = TrainerRank(config, rank, world)
            trainer.initialize()
            assert trainer._state.device == DEVICE
            trainer.train(0, payload)
            trainer.save_hf(Path(directory, f"{family}-exported"))
            checkpoint = Path(directory, f"{family}-checkpoint")
            checkpoint.mkdir(exist_ok=True)
            trainer.save(checkpoint, 0)
            again: Any = TrainerRank(config, rank, world)
            again.initialize(load=checkpoint)
            again.train(1, payload)
        return found

    return {family: run(family) for family in FAMILIES}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_trainer_keeps_them_apart(tmp_path: Path) -> None:
    for family in FAMILIES:
        make_family(tmp_path / family, family)
    for found in run_on_ranks(2, iterations, str(tmp_path), megatron=True):
        assert found == {family: [] for family in FAMILIES}
