"""Storages that go and come back, on the device that there is: bit for bit, views intact."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slime_megatron.mcore.residence import Residence
from slime_megatron.offload import HostPages, Movable, storages_of
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

CPU = torch.device("cpu")


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_views_of_a_storage_keep_their_content_across_a_move():
    flat = torch.randn(5000)
    view, transposed = flat[7:107].view(10, 10), flat[:600].view(20, 30).T
    expected = [x.clone() for x in (flat, view, transposed)]
    movable = Movable(HostPages(pin=False, page_bytes=4096))
    given = movable.give(storages_of([flat, view], CPU, set()))
    assert (given, flat.untyped_storage().nbytes(), movable.is_away) == (20000, 0, True)
    assert movable.host_bytes == 5 * 4096
    assert movable.take_back() == 20000
    assert all(torch.equal(x, y) for x, y in zip((flat, view, transposed), expected, strict=True))
    view.zero_()
    assert float(flat[7:107].abs().sum()) == 0


def test_what_is_not_kept_comes_back_as_zeros():
    gradients = torch.ones(100)
    movable = Movable(None)
    movable.give(storages_of([gradients], CPU, set()))
    assert movable.host_bytes == 0
    movable.take_back()
    assert torch.equal(gradients, torch.zeros(100))


def test_a_storage_counts_once_and_only_on_its_device():
    first, second, other = torch.ones(4), torch.ones(4), torch.ones(4, device="meta")
    seen: set[int] = set()
    assert len(storages_of([first, first[1:], first.view(2, 2), other], CPU, seen)) == 1
    assert len(storages_of([first, second], CPU, seen)) == 1


def test_memory_does_not_grow_over_many_moves():
    tensors = [torch.full((100_000,), float(i)) for i in range(40)]  # 16 MB
    movable = Movable(HostPages(pin=False, page_bytes=1 << 20))
    sizes: list[int] = []
    for _ in range(20):
        movable.give(storages_of(tensors, CPU, set()))
        movable.take_back()
        sizes.append(resident_bytes())
    assert movable.host_bytes == pytest.approx(16e6, rel=0.1)
    assert sizes[-1] - sizes[3] < 8e6
    assert all(torch.equal(x, torch.full_like(x, float(i))) for i, x in enumerate(tensors))


def trainer_of(directory: str, rank: int, world: int, *flags: str) -> tuple[Any, Any]:
    """A trainer that moves everything, as on a GPU, and what it trains on."""
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.mcore.residence import Residence
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    config = make_config(Path(directory), *flags)
    trainer = TrainerRank(config, rank, world)
    trainer.initialize()
    trainer._residence = Residence(trainer._state, copies=True)
    return trainer, make_payload(make_batch(), ParallelLayout(dp=world), config.batch, rank)


def empty(tensors: Iterable[torch.Tensor]) -> set[bool]:
    return {x.untyped_storage().nbytes() == 0 for x in tensors}


def moving_between_steps(rank: int, world: int, directory: str) -> dict[str, Any]:
    """By flags: losses, norms and weights of a trainer that moves, and of one that does not."""
    from slime_testing.megatron_steps import whole_model

    found: dict[str, Any] = {}
    for flags in FLAGS:
        both: list[Any] = []
        for moves in (False, True):
            trainer, payload = trainer_of(directory, rank, world, *flags)
            residence = trainer._residence
            steps: list[Any] = []
            for iteration in range(3):
                metrics = trainer.train(iteration, payload)
                steps.append({n: x for n, x in metrics.items() if not n.startswith("perf/")})
                for what in ("weights", "nothing", "everything", "nothing") if moves else ():
                    trainer.hold(what)
                    assert empty(residence._weight_tensors()) == {what == "nothing"}
                    assert empty(residence._gradient_tensors()) == {what != "everything"}
                    if "--bf16" in flags:
                        assert empty(residence._optimizer_tensors()) == {what != "everything"}
            with residence.at_least("weights"):
                weights = whole_model(trainer._state)
            both.append((steps, weights))
        (steps, weights), (again, moved) = both
        same = all(torch.equal(weights[name], moved[name]) for name in weights)
        found[" ".join(flags)] = (steps == again, same, len(steps[0]) > 5 or rank > 0)
    return found


def many_switches(rank: int, world: int, directory: str) -> tuple[list[int], float]:
    trainer, payload = trainer_of(directory, rank, world, *FLAGS[1])
    trainer.train(0, payload)
    host: list[int] = []
    for _ in range(20):
        host.append(int(trainer.hold("nothing")))
        trainer.hold("everything")
    return host, trainer.train(1, payload).get("train/grad_norm", 1.0)


FLAGS = (("--use-distributed-optimizer",), ("--bf16", "--use-distributed-optimizer"), ("--bf16",))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_step_after_a_move_is_the_step_without(tmp_path: Path):
    make_qwen3(tmp_path)
    for found in run_on_ranks(2, moving_between_steps, str(tmp_path), megatron=True):
        assert len(found) == len(FLAGS)
        assert set(found.values()) == {(True, True, True)}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_switches_need_the_host_memory_of_one(tmp_path: Path):
    make_qwen3(tmp_path)
    host, norm = run_on_ranks(1, many_switches, str(tmp_path), megatron=True)[0]
    assert len(set(host)) == 1
    assert host[0] > 0
    assert norm > 0


def small_state() -> tuple[Any, torch.nn.Linear, torch.Tensor]:
    """A state, its model and its gradients, in a storage of their own."""
    model = torch.nn.Linear(4, 4)
    wrapper, gradients = torch.nn.Module(), torch.ones(32)
    wrapper.module = model
    wrapper.__dict__["buffers"] = [SimpleNamespace(param_data=None, grad_data=gradients)]
    optimizer = torch.optim.Adam(model.parameters())
    return SimpleNamespace(chunks=[wrapper], optimizer=optimizer, device=CPU), model, gradients


@pytest.mark.parametrize("going", [True, False])
@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_move_that_fails_halfway_can_be_made_again(monkeypatch: Any, going: bool, fails: int):
    state, model, gradients = small_state()
    residence = Residence(state, copies=True)
    weights = [x.detach().clone() for x in model.parameters()]
    if not going:
        residence.hold("nothing")
    resize, calls = torch.UntypedStorage.resize_, iter(range(1, 100))

    def resize_until(storage: torch.UntypedStorage, size: int) -> Any:
        if next(calls) == fails:
            raise RuntimeError("out of memory")
        return resize(storage, size)

    with monkeypatch.context() as patch:
        patch.setattr(torch.UntypedStorage, "resize_", resize_until)
        with pytest.raises(RuntimeError, match="out of memory"):
            residence.hold("nothing" if going else "everything")
    residence.hold("everything")
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), weights, strict=True))
    assert gradients.untyped_storage().nbytes() == 128
    residence.hold("nothing")
    assert empty([*model.parameters(), gradients]) == {True}


def test_on_a_cpu_only_gradients_are_given_up(tmp_path: Path):
    state, model, gradients = small_state()
    residence = Residence(state)
    weight = model.weight.detach().clone()
    assert residence.hold("nothing") == 0
    assert gradients.untyped_storage().nbytes() == 0
    assert torch.equal(model.weight, weight)
    residence.hold("everything")
    assert torch.equal(gradients, torch.zeros(32))
