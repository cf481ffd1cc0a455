"""Adam's state in host memory: the steps, checkpoints and moves of a run without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from slime_megatron.mcore.optimizer import host_adam
from slime_testing.megatron_state import make_state
from slime_testing.megatron_steps import gradient_step, whole_model
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3
from slime_testing.tiny_families import make_family

DISTRIBUTED = "--use-distributed-optimizer"
OFFLOAD = ("--optimizer-cpu-offload", "--use-precision-aware-optimizer")
OVERLAP = (*OFFLOAD, "--overlap-cpu-optimizer-d2h-h2d")
HALF = (*OFFLOAD, "--optimizer-offload-fraction=0.5")
PRECISIONS: tuple[tuple[str, ...], ...] = ((), ("--bf16",))


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Of two models, by the norm of the second."""
    pairs = [(found[name].double(), wanted[name].double()) for name in wanted]
    squares = [(float((x - y).square().sum()), float(y.square().sum())) for x, y in pairs]
    apart, whole = (sum(each) for each in zip(*squares, strict=True))
    return (apart / whole) ** 0.5


def hosted(state: Any) -> host_adam.HostAdam:
    (part,) = getattr(state.optimizer, "chained_optimizers", [state.optimizer])
    return part.optimizer


def steps(rank: int, world: int, model: str) -> list[tuple[str, list[float], float]]:
    """Of each kind: how far norms and weights are from those without it, after three steps."""
    host_adam.PIECE = 1000  # parameters travel in several pieces
    found: list[tuple[str, list[float], float]] = []
    for precision in PRECISIONS:

        def run(*more: str, flags: tuple[str, ...] = precision) -> tuple[list[float], Any, Any]:
            state = make_state(Path(model), rank, world, DISTRIBUTED, *flags, *more)
            norms = [gradient_step(state, step) for step in range(3)]
            return norms, whole_model(state), state

        wanted, weights, _ = run()
        for flags in (OFFLOAD, OVERLAP, HALF):
            norms, changed, state = run(*flags)
            adam = hosted(state)
            assert (adam.num_steps, len(adam._slots)) == (3, 1 + (flags == OVERLAP))
            size = sum(p.numel() for group in adam.param_groups for p in group["params"])
            share = adam.host_bytes / size / 12
            assert 0.5 <= share < 0.9 if flags == HALF else share > 1
            far = [abs(x - y) / y for x, y in zip(norms, wanted, strict=True)]
            found.append((" ".join((*precision, *flags)), far, distance(changed, weights)))
    return found


def checkpoints(rank: int, world: int, model: str, work: str) -> list[tuple[str, float, float]]:
    """Saved after two steps and continued for two: how far from going on without a break."""
    from slime_megatron.mcore.checkpoints import checkpoint

    def fresh(path: Path) -> Path:
        if rank == 0:
            path.mkdir()
        dist.barrier()
        return path

    found: list[tuple[str, float, float]] = []
    for precision in PRECISIONS:
        for before, after in ((OFFLOAD, OFFLOAD), ((), HALF), (HALF, ())):
            common = (DISTRIBUTED, *precision)
            state = make_state(Path(model), rank, world, *common, *before)
            name = "-".join((*precision, *before, "to", *after)).replace("--", "")
            for step in range(2):
                gradient_step(state, step)
            checkpoint.save(state, fresh(Path(work) / name), 1)
            norms = [gradient_step(state, step) for step in (2, 3)]
            weights = whole_model(state)
            state = make_state(Path(model), rank, world, *common, *after, load=False)
            checkpoint.load(state, Path(work) / name)
            again = [gradient_step(state, step) for step in (2, 3)]
            far = max(abs(x - y) / y for x, y in zip(again, norms, strict=True))
            found.append((name, far, distance(whole_model(state), weights)))
    unused = make_state(Path(model), rank, world, DISTRIBUTED, *OFFLOAD)
    checkpoint.save(unused, fresh(Path(work) / "before the first step"), 0)
    return found


def moves(rank: int, world: int, model: str) -> None:
    """What is on the device goes and comes back, what is in host memory stays."""
    from slime_megatron.mcore.optimizer import adam_state
    from slime_megatron.mcore.residence import Residence

    def run(*, moved: bool) -> Any:
        state = make_state(Path(model), rank, world, DISTRIBUTED, "--bf16", *HALF)
        residence, adam = Residence(state, copies=True), hosted(state)
        for step in range(2):
            gradient_step(state, step)
            if not moved:
                continue
            before = adam.host_bytes
            held = residence.hold("nothing")
            assert held > before == adam.host_bytes > 0
            sizes = {p: {x.untyped_storage().nbytes() for x in s.values()}
                     for p, s in adam.state.items()}  # fmt: skip
            for parameter, found in sizes.items():
                assert (0 in found) != (parameter in adam._offloaded()), found
            residence.hold("everything")
        return state

    stayed, moved = run(moved=False), run(moved=True)
    assert distance(whole_model(moved), whole_model(stayed)) == 0
    adam_state.reset(moved.optimizer)
    adam = hosted(moved)
    assert adam.num_steps == 0
    assert not any(state["exp_avg_sq"].any() for state in adam.state.values())
    assert all(state["master_param"].any() for state in adam.state.values())


def experts(rank: int, world: int, model: str, work: str) -> float:
    """How far from no offloading, where experts have an optimizer of their own."""
    from slime_megatron.mcore.checkpoints import checkpoint
    from slime_megatron.mcore.optimizer import adam_state

    common = (DISTRIBUTED, "--bf16", "--expert-model-parallel-size=2")
    found: list[Any] = []
    for flags in ((), OFFLOAD):
        state = make_state(Path(model), rank, world, *common, *flags)
        gradient_step(state, 0)
        directory = Path(work) / f"experts {len(flags)}"
        if rank == 0:
            directory.mkdir()
        dist.barrier()
        checkpoint.save(state, directory, 0)
        state = make_state(Path(model), rank, world, *common, *flags, load=False)
        checkpoint.load(state, directory)
        gradient_step(state, 1)
        counts = [adam.num_steps for adam in adam_state.hosted(state.optimizer)]
        assert counts == ([2, 2] if flags else [])
        found.append(whole_model(state))
    return distance(found[1], found[0])


def everything(rank: int, world: int, model: str, sparse: str, work: str) -> tuple[Any, Any]:
    moves(rank, world, model)
    assert experts(rank, world, sparse, work) < 1e-4
    return steps(rank, world, model), checkpoints(rank, world, model, work)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_steps_checkpoints_and_moves_are_those_of_adam_on_the_device(tmp_path: Path):
    model = make_qwen3(tmp_path / "model")
    sparse = make_family(tmp_path / "experts", "qwen3_moe")
    given = (str(path) for path in (model, sparse, tmp_path))
    taken, saved = run_on_ranks(2, everything, *given, megatron=True)[0]
    for name, norms, weights in taken:
        assert max(norms) < 1e-5, (name, norms)
        assert weights < (1e-4 if "bf16" in name else 1e-6), (name, weights)
    assert len(taken) == 6
    for name, norms, weights in saved:
        exact = name.count("cpu-offload") == 2
        assert norms < (1e-9 if exact else 1e-5), (name, norms)
        assert weights <= (0 if exact else 1e-4 if "bf16" in name else 1e-6), (name, weights)
    assert len(saved) == 6
