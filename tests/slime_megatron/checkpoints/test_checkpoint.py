import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from slime_core.errors import CheckpointError
from slime_testing.megatron_state import make_state
from slime_testing.megatron_steps import gradient_step, whole_model
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

DISTRIBUTED = "--use-distributed-optimizer"
BF16 = "--bf16"


def layout(tp: int, pp: int) -> tuple[str, str]:
    return f"--tensor-model-parallel-size={tp}", f"--pipeline-model-parallel-size={pp}"


def fresh(path: Path, rank: int) -> Path:
    if rank == 0:
        path.mkdir()
    dist.barrier()
    return path


def draws() -> tuple[Any, ...]:
    from megatron.core import tensor_parallel

    with tensor_parallel.get_cuda_rng_tracker().fork():
        tracked = torch.rand(2).tolist()
    return random.random(), float(np.random.rand()), torch.rand(2).tolist(), tracked


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], rtol: float) -> bool:
    return set(a) == set(b) and all(torch.allclose(a[n], b[n], rtol=rtol, atol=rtol) for n in a)


def continues(
    rank: int, world: int, model: str, work: str, *, common: tuple[str, ...], others: Any
) -> None:
    """Two steps, save, two more; then load, and take the last two again."""
    from slime_megatron.mcore.checkpoints import checkpoint

    def build(tp: int, pp: int, *more: str, load: bool = False) -> Any:
        return make_state(Path(model), rank, world, *layout(tp, pp), *common, *more, load=load)

    state = build(2, 2, load=True)
    for step in range(2):
        gradient_step(state, step)
    directory = fresh(Path(work), rank)
    checkpoint.save(state, directory, 7, extra={"position": 42})
    drawn = draws()
    norms = [gradient_step(state, step) for step in (2, 3)]
    weights = whole_model(state)

    state = build(2, 2)
    assert checkpoint.load(state, directory) == 7
    assert draws() == drawn
    assert [gradient_step(state, step) for step in (2, 3)] == norms
    assert equal(whole_model(state), weights)
    assert state.scheduler.num_steps == 4 * state.args.global_batch_size
    assert checkpoint.read_extra(directory) == {"position": 42}

    tolerance = 1e-2 if BF16 in common else 1e-5
    for tp, pp, *more in others:
        state = build(tp, pp, *more)
        assert checkpoint.load(state, directory) == 7
        assert (draws() == drawn) == ((tp, pp) == (2, 2))
        assert [gradient_step(state, step) for step in (2, 3)] == pytest.approx(norms, rel=1e-5)
        assert close(whole_model(state), weights, tolerance), (tp, pp)


def continues_everywhere(rank: int, world: int, tied: str, untied: str, work: str) -> None:
    interleaved = "--num-layers-per-virtual-pipeline-stage=1"
    for name, model, common, others in [
        ("main", tied, (DISTRIBUTED,), [(1, 4), (2, 2, interleaved)]),
        ("bf16", untied, (DISTRIBUTED, BF16), [(1, 2)]),
        ("plain", untied, (), [(1, 1)]),
        ("plain bf16", untied, (BF16,), []),
    ]:
        continues(rank, world, model, f"{work}/{name}", common=common, others=others)


def test_a_run_continues_exactly_on_its_layout_and_closely_on_others(tmp_path: Path):
    tied = make_qwen3(tmp_path / "tied", layers=4, tied=True)
    untied = make_qwen3(tmp_path / "untied", layers=2)
    run_on_ranks(
        4, continues_everywhere, str(tied), str(untied), str(tmp_path), megatron=True, seconds=280
    )


def error_of(function: Any, *args: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*args)
    return str(caught.value)


def carries_on(rank: int, world: int, model: str, work: str) -> None:
    """An asynchronous save, and what the flags about loading do with it."""
    from slime_megatron.mcore.checkpoints import checkpoint
    from slime_megatron.mcore.weights.snapshots import Snapshots

    def build(*more: str) -> Any:
        return make_state(Path(model), rank, world, *layout(1, 2), DISTRIBUTED, *more)

    saved = fresh(Path(work) / "saved", rank)
    state = build()
    gradient_step(state, 0)
    before = whole_model(state)
    pending = checkpoint.save(state, saved, 3, asynchronous=True)
    assert pending is not None
    norm = gradient_step(state, 1)  # while files are written
    after = whole_model(state)
    assert pending.finish(wait=True)

    snapshots = Snapshots(state)
    snapshots.store("actor")
    checkpoint.load_model(state, saved)
    assert equal(whole_model(state), before)
    snapshots.load("actor")
    assert equal(whole_model(state), after)

    # the weights of a model besides it, such as a reference that was updated
    alone = fresh(Path(work) / "alone", rank)
    checkpoint.save_model(state, alone)
    checkpoint.load_model(state, saved)
    checkpoint.load_model(state, alone)
    assert equal(whole_model(state), after)
    assert "no optimizer state" in error_of(checkpoint.load, state, alone)

    state = build("--lr=1e-3", "--override-opt-param-scheduler")
    checkpoint.load(state, saved)
    assert {group["lr"] for group in state.optimizer.param_groups} == {1e-3}
    state = build("--lr=1e-3", "--use-checkpoint-opt-param-scheduler")
    checkpoint.load(state, saved)
    assert gradient_step(state, 1) == norm
    assert equal(whole_model(state), after)
    state = build("--train-iters=200")  # a constant rate: longer is no other schedule
    checkpoint.load(state, saved)
    state = build("--finetune", "--lr=1e-4")
    assert checkpoint.load(state, saved) == -1
    assert equal(whole_model(state), before)
    assert state.scheduler.num_steps == 0


def refuses(rank: int, world: int, model: str, wide: str, tied: str, work: str) -> dict[str, str]:
    from slime_megatron.mcore.checkpoints import checkpoint, pending_save

    def build(directory: str, *more: str) -> Any:
        return make_state(Path(directory), rank, world, *layout(1, 2), *more)

    def saved_by(*argv: str) -> Path:
        directory = fresh(Path(work) / "-".join(("saved", *argv)), rank)
        checkpoint.save(build(model, *argv), directory, 1)
        return directory

    saved, weights_only = saved_by(DISTRIBUTED), saved_by("--no-save-optim")
    assert checkpoint.load(build(model, "--no-load-optim"), weights_only) == 1
    told = {
        name: error_of(checkpoint.load, build(*argv), directory)
        for name, argv, directory in [
            ("width", (wide, DISTRIBUTED), saved),
            ("tied", (tied, DISTRIBUTED), saved),
            ("schedule", (model, DISTRIBUTED, "--lr=1e-3"), saved),
            ("optimizer", (model,), saved),
            ("no optimizer", (model,), weights_only),
            ("format", (model,), Path(model)),
        ]
    }

    if rank == 0:  # one file is cut short, and one cannot be opened for writing
        file = max(saved.glob("*.distcp"))
        file.write_bytes(file.read_bytes()[:500])
        (Path(work) / "full" / "__1_0.distcp").mkdir(parents=True)
    dist.barrier()
    state = build(model, DISTRIBUTED)
    told["damaged"] = error_of(checkpoint.load, state, saved)
    told["unwritable"] = error_of(checkpoint.save, state, Path(work) / "full", 1)
    blocked = Path(work) / "full again"
    if rank == 0:
        (blocked / "__1_0.distcp").mkdir(parents=True)
    dist.barrier()
    pending = checkpoint.save(state, blocked, 1, asynchronous=True)
    for _ in range(2):  # and it stays failed
        assert "could not be written" in error_of(lambda: pending.finish(wait=True))
    with pytest.MonkeyPatch.context() as disk:
        if rank == 1:
            disk.setattr(pending_save.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**19))
        told["full"] = error_of(lambda: pending.finish(wait=True))
    told["absent"] = error_of(checkpoint.save, state, Path(work) / "absent", 1)
    return told


def carries_on_and_refuses(rank: int, world: int, *given: str) -> dict[str, str]:
    carries_on(rank, world, given[0], given[-1])
    return refuses(rank, world, given[0], given[1], given[2], given[3] + "/refused")


def test_what_does_not_fit_is_refused_on_every_rank_and_says_why(tmp_path: Path):
    model = make_qwen3(tmp_path / "model")
    wide = make_qwen3(tmp_path / "wide", hidden=128)
    tied = make_qwen3(tmp_path / "tied", tied=True)
    (tmp_path / "refused").mkdir()
    given = (str(path) for path in (model, wide, tied, tmp_path))
    told = run_on_ranks(2, carries_on_and_refuses, *given, megatron=True)
    for rank, text in enumerate([rank.pop("absent") for rank in told]):
        assert f"is not there on rank {rank}" in text
    assert told[0] == told[1]
    expected = {
        "width": "hidden_size is 64 there and 128 here",
        "tied": "untie_embeddings_and_output_weights is True there and False here",
        "schedule": "--lr is 0.01 there and 0.001 here. Give --override-opt-param-scheduler",
        "optimizer": "use_distributed_optimizer is True there and False here",
        "format": "is no Megatron distributed checkpoint",
        "no optimizer": "holds no optimizer state: give --no-load-optim",
        "damaged": "cannot be read; rank",
        "unwritable": "could not be written; rank 1: ",
        "full": "rank 1: OSError: [Errno 28] No space left on device: 0.5 MiB free",
    }
    for name, text in expected.items():
        assert text in told[0][name], told[0][name]
