"""Hugging Face to Megatron and back, for every family."""

import json
import pickle
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slime_convert.dist import DistReader, Layout, dist_to_hf, hf_to_dist
from slime_convert.dist import chunks as chunks_module
from slime_convert.dist import to_hf as to_hf_module
from slime_convert.dist.pickled import read_metadata
from slime_convert.families import FAMILIES
from slime_core.errors import CheckpointError
from slime_core.files.staging import TRACKER, latest
from slime_testing.checkpoints import change, hf_tensors, in_shards, same_bytes, to_bfloat16
from slime_testing.tiny import make_qwen3
from slime_testing.tiny_families import make_family

LAYOUTS = [Layout(1, 1), Layout(2, 1), Layout(2, 2), Layout(1, 2, vocab_divisible_by=1)]


def error_of(call: Any, *args: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Any:
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = make_family(tmp_path_factory.mktemp(model_type), model_type)
        return made[model_type]

    return make


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_byte_comes_back(models, tmp_path, model_type, layout):
    source = models(model_type)
    directory = hf_to_dist(source, tmp_path / "dist", layout)
    assert latest(tmp_path / "dist") == directory
    back = dist_to_hf(directory, source, tmp_path / "back")
    assert same_bytes(hf_tensors(back), hf_tensors(source))
    assert (back / "config.json").read_text() == (source / "config.json").read_text()


def test_sixteen_bits_with_some_tensors_in_thirty_two(tmp_path):
    source = to_bfloat16(make_family(tmp_path / "hf", "deepseek_v3"))
    back = dist_to_hf(hf_to_dist(source, tmp_path / "dist"), source, tmp_path / "back")
    found = hf_tensors(back)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16, torch.float32}
    assert same_bytes(found, hf_tensors(source))


@pytest.mark.parametrize("tied", [True, False])
def test_tensors_larger_than_the_memory_allowed_pass_in_pieces(tmp_path, monkeypatch, tied):
    source = make_qwen3(tmp_path / "hf", tied=tied, num_key_value_heads=4)
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 2048)
    monkeypatch.setattr(to_hf_module, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(to_hf_module, "WHOLE_BYTES", 2048)
    directory = hf_to_dist(source, tmp_path / "dist", Layout(2, 1))
    with DistReader(directory) as reader:
        largest = max(
            torch.Size(chunk.sizes).numel()
            for described in reader._tensors.values()
            for chunk in described.chunks
        )
    assert largest * 4 <= 64 * 4 * 32 * 3  # a query group of qkv, 8 rows of all others
    back = dist_to_hf(directory, source, tmp_path / "back")
    assert same_bytes(hf_tensors(back), hf_tensors(source))


def test_the_vocabulary_is_padded_as_for_the_layout(tmp_path):
    source = make_qwen3(tmp_path / "hf")
    for layout, rows in [(Layout(1), 128), (Layout(2), 256), (Layout(2, 1, 1), 100)]:
        out = tmp_path / f"{rows}"
        with DistReader(hf_to_dist(source, out, layout)) as reader:
            assert reader.shape("embedding.word_embeddings.weight") == (rows, 64)
            assert reader.shape("output_layer.weight") == (rows, 64)


def test_the_same_bytes_are_written_every_time(tmp_path):
    source = make_qwen3(tmp_path / "hf")
    first, second = (hf_to_dist(source, tmp_path / name, Layout(2, 2)) for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_a_layout_the_model_does_not_divide_into_is_refused(tmp_path):
    source = make_qwen3(tmp_path / "hf")
    out = tmp_path / "dist"
    assert "must divide the model's 2 layers" in error_of(hf_to_dist, source, out, Layout(1, 3))
    assert "--tensor-model-parallel-size must divide" in error_of(
        hf_to_dist, source, out, Layout(3)
    )
    assert not out.exists()


def edit_missing(tensors):
    del tensors["model.norm.weight"]


def edit_extra(tensors):
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(128)


def edit_misshapen(tensors):
    tensors["model.norm.weight"] = torch.ones(63)


def edit_nan(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][5, 6] = float("nan")


def edit_integers(tensors):
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int32)


def edit_one_half(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors[
        "model.layers.1.mlp.up_proj.weight"
    ].bfloat16()


def edit_one_layer(tensors):
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors[
        "model.layers.1.mlp.down_proj.weight"
    ].bfloat16()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_missing, "missing: model.norm.weight"),
        (edit_extra, "unknown to the model: model.layers.0.self_attn.q_proj.bias"),
        (edit_misshapen, r"of another shape: model.norm.weight [63] instead of [64]"),
        (edit_nan, "`model.layers.1.mlp.up_proj.weight`"),
        (edit_integers, "model.norm.weight is I32"),
        (
            edit_one_half,
            "model.layers.0.mlp.gate_proj.weight is F32 and model.layers.1.mlp.up_proj.weight is "
            "BF16: Megatron keeps them in `decoder.layers.mlp.linear_fc1.weight`",
        ),
        (
            edit_one_layer,
            "model.layers.0.mlp.down_proj.weight is F32 and model.layers.1.mlp.down_proj.weight "
            "is BF16: Megatron keeps them in `decoder.layers.mlp.linear_fc2.weight`",
        ),
    ],
)
def test_tensors_that_are_not_in_order_leave_no_checkpoint(tmp_path, edit, message):
    source, out = make_qwen3(tmp_path / "hf"), tmp_path / "dist"
    change(source, edit)
    assert message in error_of(hf_to_dist, source, out)
    assert not out.exists() or (edit is edit_nan and not any(out.iterdir()))


def test_another_family_is_refused(tmp_path):
    source = make_qwen3(tmp_path / "hf")
    directory = hf_to_dist(source, tmp_path / "dist")
    config = json.loads((source / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    out = tmp_path / "back"
    assert "model_type is 'qwen3' there and 'llama' here" in error_of(
        dist_to_hf, directory, other, out
    )
    (other / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neo"}))
    assert "gpt_neo" in error_of(dist_to_hf, directory, other, out)
    assert not out.exists()


def test_what_no_conversion_wrote_is_not_overwritten(tmp_path):
    source, out = make_qwen3(tmp_path / "hf"), tmp_path / "dist"
    out.mkdir()
    (out / "iter_0000007").mkdir()
    assert "iter_0000007, which no conversion wrote" in error_of(hf_to_dist, source, out)
    (out / "iter_0000007").rmdir()
    hf_to_dist(source, out)
    again = hf_to_dist(source, out, Layout(2))
    assert latest(out) == again


def test_a_checkpoint_of_more_files_than_may_be_open_is_read(tmp_path):
    source = make_qwen3(tmp_path / "hf", num_key_value_heads=4)
    directory = hf_to_dist(source, tmp_path / "dist", Layout(4, 2))
    assert len(list(directory.glob("*.distcp"))) == 8
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 5, allowed[1]))
    try:
        back = dist_to_hf(directory, source, tmp_path / "back")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
    assert same_bytes(hf_tensors(back), hf_tensors(source))


def without_weights(source: Path, given: Path) -> Path:
    """What is there after a download of all but the weights: their index too."""
    shutil.copytree(source, given)
    in_shards(given)
    for file in given.glob("*.safetensors"):
        file.unlink()
    return given


def test_weights_that_were_not_downloaded_are_not_needed(models, tmp_path):
    source = models("glm4_moe")
    directory = hf_to_dist(source, tmp_path / "dist")
    given = without_weights(source, tmp_path / "given")
    back = dist_to_hf(directory, given, tmp_path / "back")
    assert same_bytes(hf_tensors(back), hf_tensors(source))


def test_weights_are_needed_for_the_tensors_that_are_carried_over(models, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(models("glm4_moe"), source)
    layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    name = f"model.layers.{layers}.eh_proj.weight"
    change(source, lambda tensors: tensors.update({name: torch.full((2, 3), 7.0)}))
    directory = hf_to_dist(source, tmp_path / "dist")
    back = dist_to_hf(directory, source, tmp_path / "back")
    assert hf_tensors(back)[name].tolist() == [[7.0] * 3] * 2
    given = without_weights(source, tmp_path / "given")
    said = error_of(dist_to_hf, directory, given, tmp_path / "other")
    assert "names files that are not there" in said


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    source = make_qwen3(tmp_path / "hf")
    directory = hf_to_dist(source, tmp_path / "dist")
    opened = Path.open

    def refuse(path, *args, **kwargs):
        if path.suffix == ".distcp":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    said = error_of(dist_to_hf, directory, source, tmp_path / "back")
    assert said == f"cannot read {directory / '__0_0.distcp'}: Permission denied"


def rename(directory: Path, names: dict[str, str]) -> None:
    """Have the description of a checkpoint call tensors otherwise."""
    metadata = read_metadata(directory / ".metadata")
    for old, new in names.items():
        assert old in metadata.state_dict_metadata
        metadata.state_dict_metadata[new] = metadata.state_dict_metadata.pop(old)
    metadata.storage_data = {
        replace(index, fqn=names.get(index.fqn, index.fqn)): info
        for index, info in metadata.storage_data.items()
    }
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("qwen3_moe", {"mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight"}),
        (
            "deepseek_v3",  # the first layer has one MLP, the second has experts
            {
                f"{layer}.self_attention.{norm}_layernorm.weight": (
                    f"{layer}.self_attention.linear_{norm}_up_proj.layer_norm_weight"
                )
                for layer in (0, 1)
                for norm in ("q", "kv")
            }
            | {"0.pre_mlp_layernorm.weight": "0.mlp.linear_fc1.layer_norm_weight"},
        ),
    ],
)
def test_norms_may_have_the_names_that_transformer_engine_gives_them(
    models, tmp_path, model_type, names
):
    source = models(model_type)
    directory = hf_to_dist(source, tmp_path / "dist", Layout(2))
    rename(directory, {f"decoder.layers.{a}": f"decoder.layers.{b}" for a, b in names.items()})
    back = dist_to_hf(directory, source, tmp_path / "back")
    assert same_bytes(hf_tensors(back), hf_tensors(source))


def test_no_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    source, out = make_qwen3(tmp_path / "hf"), tmp_path / "dist"
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    said = error_of(hf_to_dist, source, out)
    assert said.startswith(f"cannot write {out}: 446,208 bytes are needed and 1,000 are free")
    assert not out.exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_conversion_killed_while_it_replaced_another_is_repeated(tmp_path, whole):
    source, out = make_qwen3(tmp_path / "hf"), tmp_path / "dist"
    directory = hf_to_dist(source, out)
    shutil.copytree(directory, out / ".release.replaced")
    if not whole:
        directory.rename(out / ".release.partial")
    assert hf_to_dist(source, out) == directory
    back = dist_to_hf(directory, source, tmp_path / "back")
    assert same_bytes(hf_tensors(back), hf_tensors(source))
    assert {path.name for path in out.iterdir()} == {"release", TRACKER}
