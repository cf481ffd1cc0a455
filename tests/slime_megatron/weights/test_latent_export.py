"""Files of a model with multi-latent attention come back bit for bit, whatever holds it between."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from slime_core.errors import CheckpointError
from slime_testing.megatron_state import make_state
from slime_testing.megatron_steps import gradient_step, whole_model
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny_families import make_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TP2 = ("--tensor-model-parallel-size=2", "--sequence-parallel")
LAYOUTS = {
    "tp2": TP2,
    "tp2 with whole experts": (*TP2, "--expert-tensor-parallel-size=1"),
    "pp2": ("--pipeline-model-parallel-size=2",),
    "ep2": ("--expert-model-parallel-size=2",),
}
BF16 = ("--bf16", "--use-distributed-optimizer")


def same(found: dict[str, torch.Tensor], original: dict[str, torch.Tensor]) -> bool:
    """Whether the very tensors were found, rounded where the dtype is narrower."""
    return found.keys() == original.keys() and all(
        torch.equal(found[name], tensor.to(found[name].dtype)) for name, tensor in original.items()
    )


def written(rank: int, world: int, model: str, work: str) -> dict[str, bool]:
    """Which layouts write the tensors that they read."""
    from slime_megatron.mcore.weights.export import save_hf

    source = Path(model)
    original = load_file(source / "model.safetensors")
    found: dict[str, bool] = {}
    for name, flags in LAYOUTS.items():
        target = Path(work) / name
        state = make_state(source, rank, world, *flags, optimizer=False)
        save_hf(state, target, source=source)
        dist.barrier()
        tensors = load_file(target / "model.safetensors")
        assert {x.dtype for x in tensors.values()} == {torch.float32}
        found[name] = same(tensors, original)
        if name == "tp2":
            save_hf(make_state(source, rank, world, *flags, *BF16), target, source=source)
            dist.barrier()
            tensors = load_file(target / "model.safetensors")
            assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
            found["tp2 in bfloat16"] = same(tensors, original)
    return found


def resumed(rank: int, world: int, model: str, work: str) -> list[str]:
    """Save after a step in one layout, go on in others."""
    from slime_megatron.mcore.checkpoints import checkpoint

    def build(name: str, **kwargs: bool) -> Any:
        flags = (*LAYOUTS[name], "--use-distributed-optimizer")
        return make_state(Path(model), rank, world, *flags, **kwargs)

    problems: list[str] = []
    for saved, others in (("tp2", ["pp2"]), ("ep2", ["ep2", "tp2 with whole experts"])):
        state = build(saved)
        gradient_step(state, 0)
        directory = Path(work) / saved
        if rank == 0:
            directory.mkdir()
        dist.barrier()
        checkpoint.save(state, directory, 1, extra={})
        weights = whole_model(state)
        norm = gradient_step(state, 1)
        for name in others:
            state = build(name, load=False)
            checkpoint.load(state, directory)
            if not same(whole_model(state), weights):
                problems.append(f"weights of {saved} in {name}")
            if gradient_step(state, 1) != pytest.approx(norm, rel=1e-5):
                problems.append(f"gradient norm of {saved} in {name}")
    with pytest.raises(CheckpointError, match="experts in groups of their own is True there"):
        checkpoint.load(build("tp2", load=False), Path(work) / "ep2")
    return problems


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek V3 with a layer for multi-token prediction in its files."""
    directory = make_family(
        tmp_path_factory.mktemp("model"), "deepseek_v3", num_nextn_predict_layers=1
    )
    path = directory / "model.safetensors"
    extra = {"model.layers.2.eh_proj.weight": torch.zeros(64, 128)}
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    return directory


def test_every_layout_writes_what_it_read(model: Path, tmp_path: Path):
    found = run_on_ranks(2, written, str(model), str(tmp_path), megatron=True)[0]
    assert found == dict.fromkeys([*LAYOUTS, "tp2 in bfloat16"], True)


def test_a_checkpoint_of_one_layout_goes_on_in_another(model: Path, tmp_path: Path):
    assert run_on_ranks(2, resumed, str(model), str(tmp_path), megatron=True) == [[], []]
