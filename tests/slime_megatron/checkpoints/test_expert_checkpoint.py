"""Experts and post norms keep their bits through files, whichever ranks hold them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from slime_testing.megatron_state import make_state
from slime_testing.megatron_steps import gradient_step, whole_model
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TP2 = ("--tensor-model-parallel-size=2", "--sequence-parallel")
PP2, EP2 = ("--pipeline-model-parallel-size=2",), ("--expert-model-parallel-size=2",)
WHOLE = ("--expert-tensor-parallel-size=1",)
LAYOUTS = ((*TP2, *EP2, *PP2, *WHOLE), (*TP2, *EP2), (*PP2, *EP2), (*TP2, *WHOLE))
DISTRIBUTED = ("--use-distributed-optimizer", "--clip-grad=0.5")
WEIGHTS = "model.safetensors"


def same(found: dict[str, torch.Tensor], original: dict[str, torch.Tensor]) -> bool:
    return set(found) == set(original) and all(
        torch.equal(found[name], tensor) for name, tensor in original.items()
    )


def reads_and_writes(rank: int, world: int, models: list[str], work: str) -> None:
    from slime_megatron.mcore.weights.export import save_hf

    for model in models:
        source = Path(model)
        original = load_file(source / WEIGHTS)
        trained = {name: x for name, x in original.items() if not is_prediction(name)}
        for index, argv in enumerate(LAYOUTS):
            state = make_state(source, rank, world, *argv, optimizer=False)
            assert same(whole_model(state), trained), argv
            target = Path(work) / f"{source.name}{index}"
            save_hf(state, target, source=source)
            if rank == 0:
                assert same(load_file(target / WEIGHTS), original), argv


def is_prediction(name: str) -> bool:
    return name.startswith(("model.layers.2.", "model.mtp_layers."))


def with_prediction_layer(directory: Path, prefix: str) -> str:
    """Add a layer for multi-token prediction, as published checkpoints have it."""
    tensors = load_file(directory / WEIGHTS)
    tensors[f"{prefix}.input_proj.weight"] = torch.randn(4, 4)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return str(directory)


def test_any_layout_writes_the_checkpoint_bit_for_bit(tmp_path: Path):
    glm = with_prediction_layer(make_family(tmp_path / "glm4_moe", "glm4_moe"), "model.layers.2")
    mimo = with_prediction_layer(make_family(tmp_path / "mimo", "mimo"), "model.mtp_layers.0")
    dense = str(make_family(tmp_path / "glm4", "glm4"))
    qwen = str(make_family(tmp_path / "qwen3_moe", "qwen3_moe"))
    run_on_ranks(4, reads_and_writes, [glm, qwen], str(tmp_path), megatron=True)
    run_on_ranks(2, writes_dense, [dense, mimo], str(tmp_path), megatron=True)


def writes_dense(rank: int, world: int, models: list[str], work: str) -> None:
    from slime_megatron.mcore.weights.export import save_hf

    for model in models:
        source, target = Path(model), Path(work) / f"{Path(model).name} written"
        save_hf(make_state(source, rank, world, *TP2, optimizer=False), target, source=source)
        assert same(load_file(target / WEIGHTS), load_file(source / WEIGHTS)), model


def continues(
    rank: int, world: int, model: str, work: str, layouts: tuple[tuple[str, ...], ...]
) -> None:
    """Two steps, save, two more; then load on other layouts, and take the last two again."""
    from slime_megatron.mcore.checkpoints import checkpoint
    from slime_megatron.mcore.weights.snapshots import Snapshots

    def build(argv: tuple[str, ...], *, load: bool = False) -> Any:
        return make_state(Path(model), rank, world, *argv, *DISTRIBUTED, load=load)

    state = build(layouts[0], load=True)
    for step in range(2):
        gradient_step(state, step)
    saved = whole_model(state)
    directory = Path(work) / "saved"
    if rank == 0:
        directory.mkdir()
    dist.barrier()
    checkpoint.save(state, directory, 7)
    snapshots = Snapshots(state)
    snapshots.store("actor")
    norms = [gradient_step(state, step) for step in (2, 3)]
    weights = whole_model(state)
    snapshots.load("actor")
    assert same(whole_model(state), saved)
    for argv in layouts:
        state = build(argv)
        assert checkpoint.load(state, directory) == 7
        assert same(whole_model(state), saved), argv
        assert [gradient_step(state, step) for step in (2, 3)] == pytest.approx(norms, rel=1e-5)
        for name, tensor in whole_model(state).items():
            assert torch.allclose(tensor, weights[name], rtol=1e-5, atol=1e-5), (argv, name)


def test_a_run_continues_wherever_its_experts_are(tmp_path: Path):
    model = make_family(tmp_path / "model", "glm4_moe")
    run_on_ranks(4, continues, str(model), str(tmp_path), LAYOUTS, megatron=True)


def test_a_run_of_a_model_with_post_norms_continues_at_any_layout(tmp_path: Path):
    model = make_family(tmp_path / "model", "glm4")
    layouts = ((*TP2, *PP2), TP2, ("--context-parallel-size=2",))
    run_on_ranks(4, continues, str(model), str(tmp_path), layouts, megatron=True)


def holds_the_bias_in_float32(rank: int, world: int, model: str) -> None:
    source = Path(model)
    state = make_state(source, rank, world, "--bf16", *DISTRIBUTED)
    biases = [name for name in load_file(source / WEIGHTS) if name.endswith("correction_bias")]
    assert biases
    written = whole_model(state)
    for name, tensor in load_file(source / WEIGHTS).items():
        wanted = torch.float32 if name in biases else torch.bfloat16
        assert written[name].dtype == wanted
        assert torch.equal(written[name], tensor.to(wanted))


def test_the_bias_that_chooses_experts_is_not_rounded_with_the_weights(tmp_path: Path):
    model = make_family(tmp_path / "model", "glm4_moe")
    run_on_ranks(1, holds_the_bias_in_float32, str(model), megatron=True)
