from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from slime_core.errors import WeightSyncError
from slime_testing.megatron_state import make_state
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3


class Engines:
    """Keeps what it is sent; ``broken`` refuses the second bucket."""

    def __init__(self, *, broken: bool = False) -> None:
        self.version: int | None = None
        self.buckets: list[dict[str, torch.Tensor]] = []
        self.committed = False
        self._broken = broken

    def begin(self, version: int) -> None:
        self.version = version

    def send(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
        if self._broken and self.buckets:
            raise WeightSyncError("lm_head.weight differs")
        self.buckets.append({name: tensor.clone() for name, tensor in tensors})

    def commit(self) -> dict[str, float]:
        self.committed = True
        return {"perf/update_weights_density": 0.5}


def publishes(rank: int, world: int, model: str) -> None:
    from slime_megatron.publish import publish

    limit = 70_000
    argv = ("--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=2")
    state = make_state(Path(model), rank, world, *argv)
    engines = Engines() if rank == 0 else None
    metrics = publish(state, engines, 3, limit)
    if engines is None:
        assert metrics == {}
    else:
        original = load_file(Path(model) / "model.safetensors")
        assert (engines.version, engines.committed) == (3, True)
        received: dict[str, torch.Tensor] = {}
        for bucket in engines.buckets:
            assert sum(t.nbytes for t in bucket.values()) <= limit
            received |= bucket
        assert set(received) == set(original)
        assert all(torch.equal(received[name], original[name]) for name in original)
        assert metrics["perf/update_weights_bytes"] == sum(t.nbytes for t in original.values())
        assert metrics["perf/update_weights_buckets"] == len(engines.buckets) > 4
        assert metrics["perf/update_weights_time"] > 0.0
        assert metrics["perf/update_weights_density"] == 0.5

    broken = Engines(broken=True) if rank == 0 else None
    with pytest.raises(WeightSyncError, match=r"lm_head\.weight differs"):
        publish(state, broken, 4, limit)
    assert broken is None or not broken.committed
    publish(state, Engines() if rank == 0 else None, 5, limit)  # the ranks are still in step
    publishes_what_is_there_now(state, rank, Path(model), limit)


def publishes_what_is_there_now(state: Any, rank: int, model: Path, limit: int) -> None:
    """Also what took the place of a parameter, after a plan of the model was made."""
    from slime_megatron.publish import publish

    with torch.no_grad():
        for chunk in state.chunks:
            for module in chunk.modules():
                for parameter in module.parameters(recurse=False):
                    parameter.mul_(2)
                if type(module).__name__.endswith("Norm"):
                    module.weight = torch.nn.Parameter(module.weight * 2)
    engines = Engines() if rank == 0 else None
    publish(state, engines, 6, limit)
    if engines is None:
        return
    original = load_file(model / "model.safetensors")
    received = {name: tensor for bucket in engines.buckets for name, tensor in bucket.items()}
    assert set(received) == set(original)
    for name, tensor in original.items():
        assert torch.equal(received[name], tensor * (4 if "norm" in name else 2)), name


def test_engines_receive_every_weight_once(tmp_path: Path):
    model = make_qwen3(tmp_path / "model", layers=2)
    run_on_ranks(4, publishes, str(model), megatron=True)
