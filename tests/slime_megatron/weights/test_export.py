from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from slime_core.errors import CheckpointError, WeightSyncError
from slime_testing.megatron_state import make_state
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3


def writes_and_fails(rank: int, world: int, model: str, work: str) -> list[str]:
    from slime_megatron.mcore.weights.export import on_ranks, save_hf

    source, target = Path(model), Path(work) / "written"
    state = make_state(
        source,
        rank,
        world,
        "--pipeline-model-parallel-size=2",
        "--bf16",
        "--use-distributed-optimizer",
    )
    # all data-parallel replicas take part or none hangs
    save_hf(state, target, source=source)
    dist.barrier()
    assert (target / "tokenizer.json").is_file()
    written, original = (
        load_file(target / "model.safetensors"),
        load_file(source / "model.safetensors"),
    )
    assert set(written) == set(original)
    for name, tensor in original.items():
        assert torch.equal(written[name], tensor.bfloat16())

    told: list[str] = []
    with pytest.raises(CheckpointError) as caught:  # refused on rank 0, known to all
        save_hf(state, source, source=source)
    told.append(str(caught.value))

    def stops_early(buckets: object) -> None:
        next(iter(buckets))  # type: ignore[call-overload]
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        on_ranks(state, (0,), stops_early, bucket_bytes=1000)
    had = to_the_first_rank_of_each_machine(state, rank)
    assert set(had) == (set(original) if rank in (0, 2) else set())
    for name, tensor in had.items():
        assert torch.equal(tensor, original[name].bfloat16())
    # the ranks are still in step
    total = torch.ones(1)
    dist.all_reduce(total)
    assert int(total) == world
    return told


def to_the_first_rank_of_each_machine(state: Any, rank: int) -> dict[str, torch.Tensor]:
    """Ranks 0 and 2, which hold one stage each; where the second fails all ranks do."""
    from slime_megatron.mcore.weights.export import on_ranks

    found: dict[str, torch.Tensor] = {}

    def collects(buckets: Any) -> None:
        found.update({name: tensor.clone() for bucket in buckets for name, tensor in bucket})

    def second_fails(buckets: Any) -> None:
        if rank == 2:
            raise WeightSyncError("the engines of rank 2 are gone", ["http://second"])
        collects(buckets)

    with pytest.raises(WeightSyncError, match="engines of rank 2 are gone") as caught:
        on_ranks(state, (0, 2), second_fails, bucket_bytes=1000)
    assert caught.value.silent == ("http://second",)
    found.clear()
    on_ranks(state, (0, 2), collects, bucket_bytes=1000)
    return found


def test_a_failure_while_writing_reaches_every_rank_and_none_hangs(tmp_path: Path):
    model = make_qwen3(tmp_path / "model")
    told = run_on_ranks(4, writes_and_fails, str(model), str(tmp_path), megatron=True)
    assert told == [told[0]] * 4
    assert "must not be or contain each other" in told[0][0]
