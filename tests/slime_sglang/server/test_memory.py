"""An engine's tensors on a CPU: emptied by tag, and back with their shapes."""

from types import SimpleNamespace
from typing import Any

import torch
from slime_sglang.server.memory import AROUND, extent
from torch import nn

RELEASE, RESUME = AROUND.values()


def make_updater(*, backup: bool = False) -> Any:
    model = nn.Linear(8, 4)
    model.register_buffer("rotary", torch.ones(3))
    inner = SimpleNamespace(k_buffer=[torch.ones(6, 2)], v_buffer=None)
    pool = SimpleNamespace(k_buffer=[torch.ones(5, 3)], v_buffer=[torch.ones(5, 3)], full=inner)
    runner = SimpleNamespace(
        model=model,
        token_to_kv_pool=pool,
        server_args=SimpleNamespace(enable_weights_cpu_backup=backup),
    )
    return SimpleNamespace(tp_worker=SimpleNamespace(model_runner=runner))


def num_bytes(updater: Any) -> tuple[int, int]:
    runner = updater.tp_worker.model_runner
    pool = runner.token_to_kv_pool
    cache = [*pool.k_buffer, *pool.v_buffer, *pool.full.k_buffer]
    return tuple(
        sum(x.untyped_storage().nbytes() for x in tensors)
        for tensors in (cache, runner.model.parameters())
    )  # type: ignore[return-value]


def call(hook: Any, updater: Any, *tags: str) -> None:
    request = SimpleNamespace(tags=list(tags))
    assert hook(lambda _updater, asked: asked.tags, updater, request) == list(tags)


def test_the_cache_and_the_weights_go_and_come_by_tag():
    updater = make_updater()
    whole = num_bytes(updater)
    assert whole == (4 * (15 + 15 + 12), 4 * 36)
    call(RELEASE, updater, "kv_cache", "cuda_graph")
    assert num_bytes(updater) == (0, whole[1])
    call(RELEASE, updater, "weights")
    assert num_bytes(updater) == (0, 0)
    call(RESUME, updater, "weights")
    assert num_bytes(updater) == (0, whole[1])
    call(RESUME, updater, "kv_cache", "cuda_graph")
    assert num_bytes(updater) == whole
    runner = updater.tp_worker.model_runner
    assert runner.model(torch.ones(1, 8)).abs().sum() == 0
    assert torch.equal(runner.model.rotary, torch.ones(3))


def test_no_tags_mean_all_of_it():
    updater = make_updater()
    call(RELEASE, updater)
    assert num_bytes(updater) == (0, 0)


def test_weights_that_must_come_back_stay():
    updater = make_updater(backup=True)
    call(RELEASE, updater)
    assert num_bytes(updater) == (0, 4 * 36)


def test_the_extent_of_a_view_counts_from_the_beginning_of_its_storage():
    flat = torch.zeros(100, dtype=torch.bfloat16)
    assert extent(flat[10:30].view(4, 5)) == 60
    assert extent(flat.view(10, 10).T) == 200
    assert extent(flat[:0]) == 0
