import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from slime_core.errors import CheckpointError
from slime_testing.megatron_state import make_state
from slime_testing.megatron_steps import gradient_step
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3

WEIGHTS = "model.safetensors"


def layout(tp: int, pp: int, *more: str) -> tuple[str, ...]:
    return (f"--tensor-model-parallel-size={tp}", f"--pipeline-model-parallel-size={pp}", *more)


LAYOUTS = (
    layout(1, 1),
    layout(2, 1),
    layout(1, 2),
    layout(2, 2),
    layout(1, 2, "--num-layers-per-virtual-pipeline-stage=1"),
)


def round_trips(rank: int, world: int, models: list[str]) -> None:
    from slime_megatron.mcore.weights.export import export

    for model in models:
        original = load_file(Path(model) / WEIGHTS)
        for argv in LAYOUTS:
            state = make_state(Path(model), rank, world, *argv, optimizer=False)
            exported = dict(export(state, bucket_bytes=50_000))
            if rank != 0:
                assert exported == {}
                continue
            assert set(exported) == set(original), argv
            for name, tensor in original.items():
                assert torch.equal(exported[name], tensor), (argv, name)


def test_any_layout_gives_back_the_checkpoint_bit_for_bit(tmp_path: Path):
    models = [
        make_qwen3(tmp_path / "untied", layers=4),
        make_qwen3(tmp_path / "tied", layers=4, tied=True),
    ]
    run_on_ranks(4, round_trips, [str(path) for path in models], megatron=True)


def damaged(model: Path, change: Any) -> Path:
    tensors = load_file(model / WEIGHTS)
    change(tensors)
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    return model


def refuses_and_tolerates(rank: int, world: int, broken: str, extra: str, other: str) -> list[str]:
    from slime_megatron.mcore.weights.hf_load import load_hf

    problems: list[str] = []
    state = make_state(Path(extra), rank, world, *layout(2, 1), optimizer=False)
    for directory in (broken, other):
        with pytest.raises(CheckpointError) as caught:
            load_hf(state.chunks, state.family, state.hf_config, Path(directory))
        problems.append(str(caught.value))

    # bf16: the optimizer's float32 copies must follow weights that are loaded after its creation
    state = make_state(
        Path(extra), rank, world, *layout(1, 1, "--bf16", "--use-distributed-optimizer"), load=False
    )
    load_hf(state.chunks, state.family, state.hf_config, Path(extra), optimizer=state.optimizer)
    loaded = make_state(
        Path(extra), rank, world, *layout(1, 1, "--bf16", "--use-distributed-optimizer")
    )
    for a, b in zip(main_parameters(state), main_parameters(loaded), strict=True):
        assert torch.equal(a, b)
    assert gradient_step(state, 0) == gradient_step(loaded, 0)
    dist.barrier()
    return problems


def main_parameters(state: Any) -> list[torch.Tensor]:
    return [p for group in state.optimizer.param_groups for p in group["params"]]


def test_every_tensor_is_accounted_for_before_anything_is_loaded(tmp_path: Path):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.zeros(3)

    def copy_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    broken = damaged(make_qwen3(tmp_path / "broken", tied=True), spoil)
    extra = damaged(make_qwen3(tmp_path / "extra", tied=True), copy_head)
    other = make_qwen3(tmp_path / "other", tied=True, hidden=128)
    config = json.loads((extra / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config))
    told = run_on_ranks(
        2, refuses_and_tolerates, str(broken), str(extra), str(other), megatron=True
    )
    assert told[0] == told[1]
    first, second = told[0]
    for name in ("layers.1.mlp.up_proj", "layers.9.mlp.up_proj", "model.norm.weight [3]"):
        assert name in first
    assert "model.embed_tokens.weight [100, 128] instead of [100, 64]" in second
