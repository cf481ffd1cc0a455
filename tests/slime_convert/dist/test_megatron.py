"""What is written is what Megatron writes, and what Megatron and the trainer load."""

from pathlib import Path

import pytest
import torch.distributed as dist
from slime_convert.dist import DistReader, Layout, dist_to_hf, hf_to_dist
from slime_convert.families import FAMILIES, find, read_config
from slime_core.files.staging import latest
from slime_testing.checkpoints import hf_tensors, same_bytes, to_bfloat16
from slime_testing.megatron_state import make_state
from slime_testing.megatron_steps import whole_model
from slime_testing.ranks import run_on_ranks
from slime_testing.tiny import make_qwen3
from slime_testing.tiny_families import make_family


def flags(layout: Layout, *, experts: bool) -> list[str]:
    argv = [
        f"--tensor-model-parallel-size={layout.tensor}",
        f"--pipeline-model-parallel-size={layout.pipeline}",
    ]
    if layout.tensor > 1:
        argv.append("--sequence-parallel")
    if experts and layout.tensor > 1:
        argv += ["--expert-model-parallel-size=2", "--expert-tensor-parallel-size=1"]
    return argv


def loads_and_saves(
    rank: int, world: int, source: str, converted: str, saved: str, layout: Layout
) -> None:
    """Load what was converted into a model without weights; save a model that has them."""
    from megatron.core import dist_checkpointing
    from slime_megatron.mcore.checkpoints import checkpoint

    config = read_config(Path(source))
    experts = "num_experts" in find(config).megatron_args(config)
    argv = flags(layout, experts=experts)
    state = make_state(Path(source), rank, world, *argv, load=False, optimizer=False)
    fresh = whole_model(state)
    checkpoint.load_model(state, Path(converted))
    loaded = whole_model(state)
    assert not same_bytes(loaded, fresh)
    state = make_state(Path(source), rank, world, *argv, load=True, optimizer=False)
    assert same_bytes(loaded, whole_model(state))

    # Megatron itself, strict about what it misses
    metadata = checkpoint._metadata(state)
    wanted = checkpoint._model(state, metadata)
    _, missing, _ = dist_checkpointing.load(wanted, converted, strict="return_all")
    assert not missing

    if rank == 0:
        Path(saved).mkdir()
    dist.barrier()
    checkpoint.save_model(state, Path(saved))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("layout", [Layout(1, 1), Layout(2, 2)], ids=str)
def test_megatron_loads_it_and_writes_the_same(tmp_path, model_type, layout):
    source = make_family(tmp_path / "hf", model_type)
    world = layout.tensor * layout.pipeline
    # cut for another layout than it is loaded with: vocabulary padding differs too
    other = hf_to_dist(source, tmp_path / "other", Layout(3 - layout.tensor, 1))
    saved = tmp_path / "saved"
    given = (str(source), str(other), str(saved), layout)
    run_on_ranks(world, loads_and_saves, *given, megatron=True)

    converted = hf_to_dist(source, tmp_path / "dist", layout)
    with DistReader(converted) as ours, DistReader(saved) as theirs:
        assert ours.keys == theirs.keys
        assert {k: ours.shape(k) for k in ours.keys} == {k: theirs.shape(k) for k in ours.keys}
        assert {k: ours.dtype(k) for k in ours.keys} == {k: theirs.dtype(k) for k in ours.keys}
        assert ours.objects == theirs.objects
        described, expected = ours.common(), theirs.common()
        assert described["slime"]["architecture"] == expected["slime"]["architecture"]
        assert described["content_metadata"] == expected["content_metadata"]
    back = dist_to_hf(saved, source, tmp_path / "back")
    assert same_bytes(hf_tensors(back), hf_tensors(source))


def refers(rank: int, world: int, source: str, other: str, converted: str) -> None:
    """A reference of other weights than the policy's, as they are and converted."""
    from slime_core.config.algorithm import PolicyLossConfig
    from slime_core.config.reference import ReferenceConfig
    from slime_core.schedule.layout import ParallelLayout
    from slime_megatron.trainer import TrainerRank
    from slime_testing.trainer_case import make_batch, make_config, make_payload

    layout = ParallelLayout(tp=2, pp=2) if world == 4 else ParallelLayout()
    argv = flags(Layout(layout.tp, layout.pp), experts=False)
    batch, found = make_batch(), []
    for directory in (other, converted):
        config = make_config(
            Path(source),
            *argv,
            policy_loss=PolicyLossConfig(use_kl_loss=True, kl_loss_coef=0.1),
            reference=ReferenceConfig(ref_load=directory),
        )
        trainer = TrainerRank(config, rank, world)
        trainer.initialize()
        payload = make_payload(batch, layout, config.batch, rank)
        found.append(trainer.train(0, payload))
    direct, through = found
    if "train/kl_loss" in direct:
        assert direct["train/kl_loss"] != 0
        assert through["train/kl_loss"] == direct["train/kl_loss"]


@pytest.mark.parametrize("world", [1, 4])
def test_a_reference_is_the_same_converted(tmp_path, world):
    source = make_qwen3(tmp_path / "policy")
    other = make_qwen3(tmp_path / "other", seed=5)
    hf_to_dist(other, tmp_path / "dist", Layout(1))
    given = (str(source), str(other), str(tmp_path / "dist"))
    run_on_ranks(world, refers, *given, megatron=True)


def finetunes(rank: int, world: int, source: str, converted: str) -> None:
    """``--load`` of converted weights, with --finetune or with a fresh optimizer."""
    from slime_megatron.mcore.checkpoints import checkpoint

    argv = flags(Layout(world), experts=False)
    for more in (["--finetune"], ["--no-load-optim"]):
        state = make_state(Path(source), rank, world, *argv, "--bf16", *more, load=False)
        assert checkpoint.load(state, Path(converted)) == -1  # begin with the first iteration
        found = whole_model(state)
        state = make_state(Path(source), rank, world, *argv, "--bf16", load=True)
        assert same_bytes(found, whole_model(state))


def test_training_starts_from_it(tmp_path):
    source = to_bfloat16(make_qwen3(tmp_path / "hf", torch_dtype="bfloat16"))
    hf_to_dist(source, tmp_path / "dist", Layout(1))
    run_on_ranks(2, finetunes, str(source), str(latest(tmp_path / "dist")), megatron=True)
