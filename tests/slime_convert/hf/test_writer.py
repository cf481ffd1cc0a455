import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from slime_convert.hf import HfReader, write_hf, writer
from slime_core.errors import CheckpointError
from slime_testing.tiny import make_qwen3


def tensors_of(directory):
    return load_file(directory / "model.safetensors")


def siblings(directory):
    return sorted(path.name for path in directory.parent.iterdir())


def test_one_file_is_written_bit_for_bit_with_its_assets(tmp_path):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "out" / "target"
    tensors = tensors_of(source)
    assert write_hf(target, tensors.items(), source=source, expected=tensors) == target
    written = load_file(target / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in target.iterdir()) == sorted([*names, "model.safetensors"])
    for name in names:
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert siblings(target) == ["target"]


def test_shards_stay_below_the_size_asked_for_and_are_indexed(tmp_path):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    tensors = tensors_of(source)
    write_hf(target, tensors.items(), source=source, max_shard_bytes=60_000)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = sorted(target.glob("*.safetensors"))
    count = len(files)
    assert count > 1
    assert [f.name for f in files] == [
        f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
    ]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert max(f.stat().st_size for f in files) <= 60_000 + writer.HEADER_BYTES
    with HfReader(target) as reader:
        assert reader.names == tuple(sorted(tensors))
        assert all(torch.equal(reader.get(name), tensors[name]) for name in tensors)


def test_a_file_is_as_full_as_the_size_asked_for_allows(tmp_path):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    tensors = [(name, torch.zeros(100)) for name in "abc"]  # 400 bytes each
    write_hf(target, tensors, source=source, max_shard_bytes=800)
    held = [sorted(load_file(path)) for path in sorted(target.glob("*.safetensors"))]
    assert held == [["a", "b"], ["c"]]


def test_transformers_loads_what_was_written(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, target = make_qwen3(tmp_path / "source", tied=True), tmp_path / "target"
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(source).items()}
    write_hf(target, tensors.items(), source=source, max_shard_bytes=60_000)
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.dtype == torch.bfloat16  # config.json says what the files hold
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding, tensors["model.embed_tokens.weight"])
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.decode(tokenizer("1 + 2 =\n3")["input_ids"]) == "1 + 2 =\n3"


def test_a_file_whose_header_is_full_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "HEADER_BYTES", 1024)
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    tensors = {f"{'long' * 20}.{n}": torch.full((2,), float(n)) for n in range(20)}
    write_hf(target, tensors.items(), source=source)
    assert len(list(target.glob("*.safetensors"))) > 1
    with HfReader(target) as reader:
        assert all(torch.equal(reader.get(name), tensors[name]) for name in tensors)


def test_every_kind_of_tensor_survives(tmp_path):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    tensors = {str(dtype): torch.tensor([[1, 0], [2, 3]]).to(dtype) for dtype in writer.DTYPES} | {
        "a view": torch.arange(12.0).reshape(3, 4).t()[1:],
        "a scalar": torch.tensor(3.5),
        "an empty one": torch.empty(0, 4),
        'a "name" \N{SNOWMAN}\N{GRINNING FACE}': torch.ones(1, requires_grad=True),
    }
    write_hf(target, tensors.items(), source=source)
    written = load_file(target / "model.safetensors")
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype
        assert written[name].shape == tensor.shape
        assert torch.equal(written[name].float(), tensor.float()), name
    assert (target / "config.json").read_text() == (source / "config.json").read_text()


def test_a_few_tensors_of_another_type_do_not_decide_what_config_json_says(tmp_path):
    source, target = make_qwen3(tmp_path / "source", torch_dtype="float32"), tmp_path / "target"
    weight, bias = torch.zeros(8, dtype=torch.bfloat16), torch.zeros(3)
    write_hf(target, [("mlp.gate.e_score_correction_bias", bias), ("w", weight)], source=source)
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "bfloat16"
    write_hf(target, [("bias", torch.zeros(4)), ("w", weight)], source=source)  # as many bytes
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "float32"


def test_a_buffer_may_be_filled_again_for_the_next_tensor(tmp_path):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    buffer = torch.empty(3)
    write_hf(target, ((str(n), buffer.fill_(n)) for n in range(3)), source=source)
    assert [t.tolist() for t in load_file(target / "model.safetensors").values()] == [
        [0.0] * 3,
        [1.0] * 3,
        [2.0] * 3,
    ]


def test_an_earlier_result_is_replaced_and_nothing_else(tmp_path):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    write_hf(target, [("a", torch.zeros(1))], source=source)
    write_hf(target, [("b", torch.ones(1))], source=source)
    assert load_file(target / "model.safetensors") == {"b": torch.ones(1)}
    assert siblings(target) == ["source", "target"]
    other = make_qwen3(tmp_path / "other")
    with pytest.raises(CheckpointError, match="was not written by slime"):
        write_hf(other, [("a", torch.zeros(1))], source=source)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file"):
        write_hf(file, [("a", torch.zeros(1))], source=source)
    (tmp_path / "empty").mkdir()
    write_hf(tmp_path / "empty", [("a", torch.zeros(1))], source=source)


def test_a_directory_inside_an_earlier_result_is_not_deleted_with_it(tmp_path):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    write_hf(target, [("a", torch.zeros(1))], source=source)
    kept = target / "checkpoints" / "release" / "weights"
    kept.parent.mkdir(parents=True)
    kept.write_text("of the user")
    with pytest.raises(CheckpointError, match="the directory checkpoints in it deleted"):
        write_hf(target, [("b", torch.ones(1))], source=source)
    assert kept.read_text() == "of the user"
    assert load_file(target / "model.safetensors") == {"a": torch.zeros(1)}


def test_an_earlier_result_is_still_there_if_it_cannot_be_replaced(tmp_path, monkeypatch):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    write_hf(target, [("a", torch.zeros(1))], source=source)
    rename = Path.rename

    def refuse(path, new):
        if path.name == ".target.incomplete":
            raise OSError(5, "Input/output error")
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write_hf(target, [("b", torch.ones(1))], source=source)
    assert load_file(target / "model.safetensors") == {"a": torch.zeros(1)}
    assert siblings(target) == ["source", "target"]


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    source, elsewhere = make_qwen3(tmp_path / "source"), tmp_path / "large_disk" / "target"
    elsewhere.mkdir(parents=True)
    link = tmp_path / "target"
    link.symlink_to(elsewhere)
    for value in (0.0, 1.0, 2.0):
        assert write_hf(link, [("a", torch.tensor([value]))], source=source) == link
        assert link.readlink() == elsewhere
        assert load_file(elsewhere / "model.safetensors") == {"a": torch.tensor([value])}
    assert siblings(link) == ["large_disk", "source", "target"]
    assert siblings(elsewhere) == ["target"]


@pytest.mark.parametrize("where", [".", "sub/directory", ".."])
def test_the_source_is_never_written_to(tmp_path, where):
    source = make_qwen3(tmp_path / "parent" / "source")
    before = sorted(path.name for path in source.iterdir())
    link = tmp_path / "link"
    link.symlink_to(source)
    for name in (source / where, link / where):
        with pytest.raises(CheckpointError, match="must not be or contain each other"):
            write_hf(name, [("a", torch.zeros(1))], source=source)
    assert sorted(path.name for path in source.iterdir()) == before


def test_a_source_without_a_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        write_hf(tmp_path / "target", [("a", torch.zeros(1))], source=tmp_path)


def failing():
    yield "a", torch.zeros(1)
    raise RuntimeError("the trainer died")


@pytest.mark.parametrize(
    ("tensors", "expected", "error", "message"),
    [
        ([], None, CheckpointError, "no tensors"),
        ([("a", torch.zeros(1))] * 2, None, CheckpointError, "`a` was given twice"),
        ([("a", torch.zeros(1))], ["a", "b"], CheckpointError, r"missing \['b'\]"),
        ([("a", torch.zeros(1))], [], CheckpointError, r"unknown \['a'\]"),
        ([("a", torch.zeros(1, dtype=torch.complex64))], None, CheckpointError, "complex64"),
        (failing(), None, RuntimeError, "the trainer died"),
    ],
)
def test_nothing_appears_when_the_tensors_are_not_right(
    tmp_path, tensors, expected, error, message
):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    with pytest.raises(error, match=message):
        write_hf(target, tensors, source=source, expected=expected)
    assert siblings(target) == ["source"]


KILLED = """
import os, signal, sys, torch
from slime_convert.hf import write_hf
def tensors():
    for n in range(5):
        yield str(n), torch.full((100,), float(n))
        if n == 3:
            os.kill(os.getpid(), signal.SIGKILL)
write_hf(sys.argv[2], tensors(), source=sys.argv[1], max_shard_bytes=800)
"""


def test_a_killed_writer_leaves_nothing_that_looks_like_a_checkpoint(tmp_path):
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    command = [sys.executable, "-c", KILLED, str(source), str(target)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not target.exists()
    (staging,) = (path for path in tmp_path.iterdir() if path != source)
    assert staging.name.startswith(".")
    assert all(path.suffix == ".part" for path in staging.iterdir())
    write_hf(target, [("a", torch.zeros(1))], source=source)
    assert siblings(target) == ["source", "target"]


def test_everything_is_on_disk_before_the_directory_appears(tmp_path, monkeypatch):
    """Record fsync and rename: files, then their directory, then the rename, then the parent."""
    source, target = make_qwen3(tmp_path / "source"), tmp_path / "target"
    events, real_fsync = [], os.fsync

    def fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append((path.name, target.exists()))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_hf(target, [("a", torch.zeros(1))], source=source)
    assert events == [
        ("1.part", False),
        ("config.json", False),
        ("generation_config.json", False),
        ("tokenizer.json", False),
        ("tokenizer_config.json", False),
        (".target.incomplete", False),
        (tmp_path.name, True),
    ]
