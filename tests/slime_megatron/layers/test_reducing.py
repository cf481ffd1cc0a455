"""Ranks add their gradients up in one order, whichever of them are there first."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slime_megatron.mcore.layers.reducing import reduce_in_order
from slime_testing.layout_case import OVERLAPPING
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3
from torch import nn


class Group:
    """Gradients that travel together, as Megatron keeps them."""

    def __init__(self, name: str, params: list[nn.Parameter], started: list[str]) -> None:
        self.params = params
        self.is_first_batch = False
        self._name, self._started = name, started

    def start_grad_sync(self, force_all_reduce: bool | None = False) -> None:
        self._started.append(f"{self._name} whole" if force_all_reduce else self._name)


def make_chunk(started: list[str]) -> Any:
    """Four weights: the last two in a group, one each in another and in one of experts."""
    model = nn.Module()
    for number in range(4):
        model.register_parameter(f"weight{number}", nn.Parameter())
    weights = list(model.parameters())
    chunk: Any = model
    chunk.ddp_config = SimpleNamespace(overlap_grad_reduce=True)
    chunk.bucket_groups = [Group("a", weights[2:], started), Group("c", weights[:1], started)]
    chunk.expert_parallel_bucket_groups = [Group("b", weights[1:2], started)]
    return chunk


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_sums_start_in_the_order_of_the_backward_pass_whichever_is_complete_first(order):
    started: list[str] = []
    chunk = make_chunk(started)
    reduce_in_order([chunk])
    groups = [*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups]
    for _ in range(2):
        for place in order:
            groups[place].start_grad_sync()
    assert started == ["a", "b", "c"] * 2


def test_a_sum_waits_for_those_before_it_and_keeps_how_it_was_asked_for():
    started: list[str] = []
    chunk = make_chunk(started)
    reduce_in_order([chunk])
    chunk.bucket_groups[1].start_grad_sync(force_all_reduce=True)
    assert started == []
    chunk.bucket_groups[0].start_grad_sync()
    assert started == ["a"]
    chunk.expert_parallel_bucket_groups[0].start_grad_sync()
    assert started == ["a", "b", "c whole"]


def test_in_the_first_pass_megatron_starts_them_itself():
    started: list[str] = []
    chunk = make_chunk(started)
    reduce_in_order([chunk])
    chunk.bucket_groups[1].is_first_batch = True
    chunk.bucket_groups[1].start_grad_sync()
    assert started == ["c"]


def traced_iterations(rank: int, world: int, directory: str) -> dict[bool, list[float]]:
    """By whether layers are traced, loss and gradient norm of three iterations on rank 0."""
    import torch
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.mcore.layers.compiled import compile_layers
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    found: dict[bool, list[float]] = {}
    for traced in (False, True):
        config = make_config(Path(directory), *OVERLAPPING, "--lr=1e-4")
        payload = make_payload(make_batch(), ParallelLayout(dp=world), config.batch, rank)
        trainer: Any = TrainerRank(config, rank, world)
        trainer.initialize()
        if traced:
            compile_layers(trainer._state.chunks, backend="aot_eager")
            torch.compiler.set_stance("default")
        metrics = [trainer.train(iteration, payload) for iteration in range(3)]
        names = ("train/loss", "train/grad_norm") if rank == 0 else ()
        found[traced] = [each[name] for each in metrics for name in names]
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_compiled_layers_give_many_small_groups_the_sums_of_plain_ones(tmp_path: Path):
    directory = str(make_qwen3(tmp_path / "model"))
    found = run_on_ranks(2, traced_iterations, directory, megatron=True)[0]
    assert len(found[True]) == 6
    assert found[True] == pytest.approx(found[False], rel=1e-4)
