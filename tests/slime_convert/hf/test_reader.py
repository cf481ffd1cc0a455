import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from slime_convert import families
from slime_convert.hf import HfReader
from slime_convert.hf.reader import read_into
from slime_core.errors import CheckpointError
from slime_testing.tiny import make_qwen3


def make_sharded(directory):
    """Two shards and their index, as published: the norm and head in the second."""
    made = make_qwen3(directory)
    tensors = load_file(made / "model.safetensors")
    (made / "model.safetensors").unlink()
    second = {"model.norm.weight", "lm_head.weight"}
    weight_map = {name: f"model-{1 + (name in second)}.safetensors" for name in tensors}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, made / file)
    write_index(made, weight_map)
    return made, tensors


def write_index(directory, weight_map):
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(text)


def read_index(directory):
    return json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]


def table(directory):
    config = families.read_config(directory)
    return families.find(config).parameters(config)


def refused(directory, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        HfReader(directory)
    assert str(directory) in str(caught.value)


def test_one_file_and_shards_read_alike(tmp_path):
    single = make_qwen3(tmp_path / "single")
    sharded, tensors = make_sharded(tmp_path / "sharded")
    for directory in (single, sharded):
        with HfReader(directory) as reader:
            reader.check(table(directory))
            assert reader.names == tuple(sorted(tensors))
            assert all(torch.equal(reader.get(name), tensors[name]) for name in tensors)


def test_an_empty_tensor_may_stand_where_the_next_one_begins(tmp_path):
    """Whichever of them the header names first."""
    made = make_qwen3(tmp_path)
    header = json.dumps(
        {
            "full": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "empty": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        }
    ).encode()
    data = struct.pack("<Q", len(header)) + header + struct.pack("<f", 2.5)
    (made / "model.safetensors").write_bytes(data)
    assert load_file(made / "model.safetensors")["full"].tolist() == [2.5]
    with HfReader(made) as reader:
        assert reader.get("full").tolist() == [2.5]
        assert reader.shape("empty") == (0,)


def test_a_slice_is_read_without_the_rest(tmp_path):
    with HfReader(make_qwen3(tmp_path)) as reader:
        name = "model.embed_tokens.weight"
        assert torch.equal(reader.get(name, slice(2, 5), slice(0, 7)), reader.get(name)[2:5, 0:7])
        assert reader.shape(name) == (100, 64)


def test_a_tensor_without_dimensions_is_one_row(tmp_path):
    made = make_qwen3(tmp_path)
    save_file({"scale": torch.tensor(2.5)}, made / "model.safetensors")
    with HfReader(made) as reader:
        row = reader.rows("scale", 0, 1)
        assert (row.shape, row.item()) == ((), 2.5)


def test_a_read_that_stops_early_is_gone_on_with(tmp_path, monkeypatch):
    """Linux reads at most 2 GiB at a time."""
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, to, at: preadv(file, [to[0][:3]], at))
    (tmp_path / "file").write_bytes(bytes(range(20)))
    found = torch.zeros(10, dtype=torch.uint8)
    with (tmp_path / "file").open("rb", buffering=0) as stream:
        assert read_into(stream, 4, found)
        assert found.tolist() == list(range(4, 14))
        assert not read_into(stream, 11, found)


def test_tensors_outlive_the_reader(tmp_path):
    with HfReader(make_qwen3(tmp_path)) as reader:
        norm = reader.get("model.norm.weight")
    assert 0.5 <= float(norm.mean()) <= 1.5


def test_a_name_that_is_not_there_is_named(tmp_path):
    with (
        HfReader(make_qwen3(tmp_path)) as reader,
        pytest.raises(CheckpointError, match=r"holds no tensor `model\.nrom\.weight`"),
    ):
        reader.get("model.nrom.weight")


def test_a_directory_without_weights_says_what_was_looked_for(tmp_path):
    refused(tmp_path, "holds neither model.safetensors nor model.safetensors.index.json")
    refused(tmp_path / "nowhere", "is not a directory")
    (tmp_path / "pytorch_model.bin").touch()
    refused(tmp_path, "holds pickled weights")


@pytest.mark.parametrize("beside_weights", [False, True])
def test_an_adapter_is_not_left_out_without_a_word(tmp_path, beside_weights):
    if beside_weights:
        make_qwen3(tmp_path)
    save_file({"q_proj.lora_A.weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(tmp_path, r"holds an adapter \(adapter_config\.json\).*merge_and_unload")


def test_shards_without_an_index_are_refused(tmp_path):
    made, _ = make_sharded(tmp_path)
    (made / "model.safetensors.index.json").unlink()
    refused(made, "no model.safetensors.index.json that lists them")


def test_an_index_naming_absent_shards_is_refused(tmp_path):
    made, _ = make_sharded(tmp_path)
    (made / "model-2.safetensors").unlink()
    refused(made, r"names files that are not there: model-2\.safetensors")


def test_an_index_promising_tensors_that_its_shards_lack_is_refused(tmp_path):
    made, _ = make_sharded(tmp_path)
    write_index(made, read_index(made) | {"model.norm.bias": "model-2.safetensors"})
    refused(made, r"do not hold: model\.norm\.bias in model-2\.safetensors")


@pytest.mark.parametrize("text", ["", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_named(tmp_path, text):
    made, _ = make_sharded(tmp_path)
    (made / "model.safetensors.index.json").write_text(text)
    refused(made, "index.json is damaged")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_file_that_is_cut_short_is_named(tmp_path, kept):
    path = make_qwen3(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(tmp_path, "cut short|not written or downloaded completely")


def test_a_clone_without_its_large_files_says_how_to_fetch_them(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 123456789\n"
    (make_qwen3(tmp_path) / "model.safetensors").write_text(pointer)
    refused(tmp_path, "model.safetensors is a pointer to a file in Git LFS: .*`git lfs pull`")


def test_a_file_with_bytes_behind_its_tensors_is_refused(tmp_path):
    path = make_qwen3(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    refused(tmp_path, "model.safetensors holds .* bytes of tensors and its header promises")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [3], "data_offsets": ["0", "12"]},
        {"dtype": ["F32"], "shape": [3], "data_offsets": [0, 12]},
        {"dtype": "F32", "shape": [-3, -1], "data_offsets": [0, 12]},
        {"dtype": "X9", "shape": [3], "data_offsets": [12, 0]},
        [],
    ],
)
def test_a_header_that_contradicts_itself_is_named(tmp_path, entry):
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    refused(tmp_path, "the header of .*model.safetensors is damaged")


def test_a_header_or_an_index_that_is_nested_without_end_is_named(tmp_path):
    text = b"[" * 200_000
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(tmp_path, "the header of .*model.safetensors is damaged")
    path.rename(tmp_path / "model.safetensors.index.json").write_bytes(text)
    refused(tmp_path, "index.json is damaged")


def test_all_tensors_that_do_not_fit_the_model_are_reported_together(tmp_path):
    path = make_qwen3(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(65)
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(1)
    save_file(tensors, path)
    with HfReader(tmp_path) as reader, pytest.raises(CheckpointError) as caught:
        reader.check(table(tmp_path))
    assert str(caught.value) == (
        f"the tensors in {tmp_path} do not fit the qwen3 model of its config.json: "
        "missing: model.layers.1.mlp.up_proj.weight; "
        "of another shape: model.norm.weight [65] instead of [64]; "
        "unknown to the model: model.layers.2.mlp.up_proj.weight"
    )


def test_a_tied_checkpoint_may_repeat_the_embedding_as_its_head(tmp_path):
    path = make_qwen3(tmp_path, tied=True) / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    with HfReader(tmp_path) as reader:
        reader.check(table(tmp_path))


def test_values_that_are_not_finite_are_named_when_asked_for(tmp_path):
    path = make_qwen3(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path)
    with HfReader(tmp_path) as reader:
        assert reader.get("model.norm.weight").isnan().any()
    with (
        HfReader(tmp_path, check_finite=True) as reader,
        pytest.raises(CheckpointError, match=r"`model\.norm\.weight` in .*model\.safetensors"),
    ):
        reader.get("model.norm.weight")
