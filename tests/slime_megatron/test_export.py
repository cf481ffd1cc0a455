from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from slime_core.errors import CheckpointError
from slime_testing.megatron_state import make_state
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3


def writes_and_fails(rank: int, world: int, model: str, work: str) -> list[str]:
    from slime_megatron.mcore.export import on_rank_zero, save_hf

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
        on_rank_zero(state, stops_early, bucket_bytes=1000)
    # the ranks are still in step
    total = torch.ones(1)
    dist.all_reduce(total)
    assert int(total) == world
    return told


def test_a_failure_while_writing_reaches_every_rank_and_none_hangs(tmp_path: Path):
    model = make_qwen3(tmp_path / "model")
    told = run_on_ranks(4, writes_and_fails, str(model), str(tmp_path), megatron=True)
    assert told == [told[0]] * 4
    assert "must not be or contain each other" in told[0][0]
