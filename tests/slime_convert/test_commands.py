"""The command line on whole, damaged and interrupted checkpoints."""

import json
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from slime_convert import cli, upstream_converter
from slime_convert.dist import Layout, hf_to_dist
from slime_core.files.staging import TRACKER, latest
from slime_testing.checkpoints import change, hf_tensors, in_shards, same_bytes
from slime_testing.tiny import make_qwen3
from slime_testing.tiny_families import make_family

CLI = [sys.executable, "-m", "slime_convert"]


@pytest.fixture
def source(tmp_path) -> Path:
    return make_qwen3(tmp_path / "hf")


def refused(capsys, *arguments: object) -> str:
    """The one line on the standard error of a command that fails."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("slime-convert: ")
    return captured.err


def done(capsys, *arguments: object) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # no progress bar without a terminal
    return captured.out


def test_there_and_back(source, tmp_path, capsys):
    dist, back = tmp_path / "dist", tmp_path / "back"
    sizes = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2)
    assert f"--ref-load {dist}" in done(capsys, "hf-to-dist", "--hf", source, "--out", dist, *sizes)
    assert (dist / TRACKER).read_text() == "release"
    said = done(capsys, "inspect", dist)
    assert "Megatron torch_dist" in said
    assert "world 4, tensor 2, pipeline 2" in said
    given = ("dist-to-hf", "--dist", dist, "--hf-config", source, "--out", back)
    done(capsys, *given, "--max-shard-size", "200KB")
    assert len(list(back.glob("*.safetensors"))) > 1
    assert same_bytes(hf_tensors(back), hf_tensors(source))
    said = done(capsys, "verify", "--hf", source, "--dist", dist, "--logits")
    assert "25 (25 F32), 446,208 bytes, all equal" in said
    assert "156 rows beyond the vocabulary of 100: zeros" in said
    assert "logits    equal" in said


def test_a_trained_checkpoint_of_which_more_is_known_is_described(source, tmp_path, capsys):
    directory = hf_to_dist(source, tmp_path / "dist")
    directory.rename(tmp_path / "dist" / "iter_0000007")
    (tmp_path / "dist" / TRACKER).write_text("7")
    assert re.search(r"iteration +7\n", done(capsys, "inspect", tmp_path / "dist"))
    assert re.search(r"iteration +7\n", done(capsys, "inspect", tmp_path / "dist" / "iter_0000007"))


def one_value(tensors):
    tensors["model.layers.0.mlp.gate_proj.weight"][3, 4] += 1


def one_sign(tensors):
    tensors["model.norm.weight"][0] = -0.0


def another_type(tensors):
    for name in tensors:
        tensors[name] = tensors[name].double().half()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (one_value, "differ in 1 of 25 tensors: model.layers.0.mlp.gate_proj.weight in its values"),
        (one_sign, "model.norm.weight in its values"),
        (another_type, "F32 instead of F16"),
    ],
)
def test_what_differs_is_named(source, tmp_path, capsys, edit, message):
    hf_to_dist(source, tmp_path / "dist")
    change(source, edit)
    assert message in refused(capsys, "verify", "--hf", source, "--dist", tmp_path / "dist")


def test_a_repeated_embedding_must_be_the_embedding(tmp_path, capsys):
    source = make_qwen3(tmp_path / "hf", tied=True)

    def repeat(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change(source, repeat)
    hf_to_dist(source, tmp_path / "dist")
    given = ("verify", "--hf", source, "--dist", tmp_path / "dist")
    assert "the output layer is the embedding" in done(capsys, *given)

    def differ(tensors):
        tensors["lm_head.weight"][0, 0] = 7

    change(source, differ)
    assert "lm_head.weight` that is not `model.embed_tokens.weight" in refused(capsys, *given)
    said = refused(capsys, "hf-to-dist", "--hf", source, "--out", tmp_path / "other")
    assert "tie_word_embeddings = true" in said
    assert not (tmp_path / "other").exists()

    def narrow(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].bfloat16()

    change(source, narrow)
    assert "tie_word_embeddings = true" in refused(capsys, "inspect", source)


def convert(capsys, source: Path, out: Path) -> str:
    said = refused(capsys, "hf-to-dist", "--hf", source, "--out", out)
    assert not out.exists() or not any(out.iterdir())
    return said


def test_an_index_that_does_not_tell_the_truth(source, tmp_path, capsys):
    index = in_shards(source)
    values = json.loads(index.read_text())
    out = tmp_path / "out"

    def write(**changes):
        index.write_text(json.dumps(values | changes))

    write(
        weight_map=values["weight_map"] | {"model.norm.weight": "model-00003-of-00003.safetensors"}
    )
    assert "names files that are not there" in convert(capsys, source, out)
    moved = {"model.norm.weight": "model-00001-of-00002.safetensors"}
    if values["weight_map"]["model.norm.weight"] in moved.values():
        moved = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    write(weight_map=values["weight_map"] | moved)
    assert "promises tensors that its files do not hold" in convert(capsys, source, out)
    write(metadata={"total_size": values["metadata"]["total_size"] + 4})
    assert "promises 446212 bytes" in convert(capsys, source, out)
    fewer = {k: v for k, v in values["weight_map"].items() if k != "lm_head.weight"}
    write(weight_map=fewer)
    assert "missing: lm_head.weight" in convert(capsys, source, out)
    write()
    assert done(capsys, "hf-to-dist", "--hf", source, "--out", out)


def test_files_that_are_cut_short(source, tmp_path, capsys):
    dist = hf_to_dist(source, tmp_path / "dist", Layout(2))
    file = dist / "__1_0.distcp"
    whole = file.read_bytes()
    back = ("dist-to-hf", "--hf-config", source, "--out", tmp_path / "back", "--dist")
    file.write_bytes(whole[:-1])
    assert "__1_0.distcp is not" in refused(capsys, *back, tmp_path / "dist")
    assert "__1_0.distcp has" in refused(capsys, *back, dist)  # without its manifest
    file.unlink()
    assert "__1_0.distcp is missing" in refused(capsys, *back, dist)
    file.write_bytes(bytes(len(whole)))
    assert "damaged at byte" in refused(capsys, *back, dist)
    file.write_bytes(whole)
    (dist / ".metadata").write_bytes((dist / ".metadata").read_bytes()[:500])
    assert ".metadata is damaged" in refused(capsys, *back, dist)
    assert not (tmp_path / "back").exists()
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert "was not written or downloaded completely" in convert(capsys, source, tmp_path / "out")


def retype(path: Path, name: str, dtype: str) -> None:
    """Have a safetensors file say another type of a tensor, whose bytes stay as they are."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header[name]["dtype"] = dtype
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def test_a_type_that_is_no_weights_is_named(source, tmp_path, capsys):
    out = tmp_path / "out"
    retype(source / "model.safetensors", "model.norm.weight", "U32")
    assert "model.norm.weight is U32" in convert(capsys, source, out)
    retype(source / "model.safetensors", "model.norm.weight", "NEW")
    assert "model.norm.weight is NEW" in convert(capsys, source, out)
    assert re.search(r"tensors +24 F32, 1 NEW", done(capsys, "inspect", source))
    said = refused(capsys, "cast", "--hf", source, "--out", out, "--dtype", "bf16")
    assert "is NEW: tensors of this type are not read" in said
    (source / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(2, dtype=torch.complex64)}, source / "a.bin")
    said = refused(capsys, "inspect", source, "--allow-pickle")
    assert "is torch.complex64: tensors of this type are not read" in said


class Touch:
    """A pickle that leaves a trace when it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_weights_are_read_only_when_asked_for_and_never_run(source, tmp_path, capsys):
    tensors = load_file(source / "model.safetensors")
    expected = hf_tensors(source)
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    out, trace = tmp_path / "out", tmp_path / "trace"
    assert "give --allow-pickle" in convert(capsys, source, out)
    assert "holds pickled weights" in refused(capsys, "inspect", source)
    done(capsys, "hf-to-dist", "--hf", source, "--out", out, "--allow-pickle")
    done(capsys, "verify", "--hf", source, "--dist", out, "--allow-pickle")
    done(capsys, "dist-to-hf", "--dist", out, "--hf-config", source, "--out", tmp_path / "back")
    assert same_bytes(hf_tensors(tmp_path / "back"), expected)

    torch.save({"model.norm.weight": Touch(trace)}, source / "pytorch_model.bin")
    said = refused(capsys, "hf-to-dist", "--hf", source, "--out", out, "--allow-pickle")
    assert "cannot be read safely" in said
    (out / "release" / ".metadata").write_bytes(pickle.dumps(Touch(trace)))
    said = refused(capsys, "inspect", out / "release")
    assert "which no checkpoint needs" in said
    assert not trace.exists()


def limited() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.parametrize("command", ["hf-to-dist", "dist-to-hf", "cast"])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(source, tmp_path, command):
    out = tmp_path / "out" / "there"
    hf_to_dist(source, tmp_path / "dist")
    given = {
        "hf-to-dist": ["--hf", source],
        "dist-to-hf": ["--dist", tmp_path / "dist", "--hf-config", source],
        "cast": ["--hf", source, "--dtype", "bf16"],
    }[command]
    ran = subprocess.run(
        [*CLI, command, *map(str, given), "--out", str(out)],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"slime-convert: cannot write {out}")
    assert "File too large" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not out.exists() or not any(out.iterdir())
    assert {*out.parent.glob("*")} <= {out}  # hidden ones included


KILLED = """
import os, signal, sys
from pathlib import Path
from slime_convert import cli
from slime_convert.dist import writer

calls, write = 0, writer._File.write
def counted(self, data):
    global calls
    calls += 1
    if calls == {at}:
        os.kill(os.getpid(), signal.{signal})
    return write(self, data)
writer._File.write = counted
sys.exit(cli.main(["hf-to-dist", "--hf", {hf!r}, "--out", {out!r}]))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_killed_in_the_middle_it_is_no_checkpoint_and_can_be_begun_again(
    source, tmp_path, capsys, name
):
    out = tmp_path / "out"
    code = KILLED.format(at=100, signal=name, hf=str(source), out=str(out))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130), ran.stderr
    if name == "SIGKILL":
        assert latest(out) is None
        assert {path.name for path in out.iterdir()} == {".release.partial", ".slime-convert.lock"}
        assert "no Megatron checkpoint" in refused(capsys, "inspect", out)
    else:
        assert not out.exists()
    done(capsys, "hf-to-dist", "--hf", source, "--out", out)
    assert {path.name for path in out.iterdir()} == {"release", TRACKER}


def test_wrong_command_lines_are_one_line(source, tmp_path, capsys):
    assert "invalid choice: 'frob'" in refused(capsys, "frob")
    assert "--out" in refused(capsys, "hf-to-dist", "--hf", source)
    given = ("cast", "--hf", source, "--out", tmp_path / "o", "--dtype", "bf16")
    for size in ("many", "0.5", "0", "0.0004KB", "9" * 400, "-1GB"):
        assert "no size such as 5GB" in refused(capsys, *given, f"--max-shard-size={size}")
    given = ("hf-to-dist", "--hf", source, "--out", tmp_path / "o")
    assert "at least 1" in refused(capsys, *given, "--tensor-model-parallel-size", 0)
    assert "not a directory" in refused(capsys, "inspect", tmp_path / "nowhere")


def test_what_the_system_refuses_is_one_line(source, tmp_path, capsys):
    nameless = tmp_path / ("x" * 300)
    for command in (
        ("inspect", nameless),
        ("hf-to-dist", "--hf", nameless, "--out", tmp_path / "o"),
        ("hf-to-dist", "--hf", source, "--out", nameless),
        ("dist-to-hf", "--dist", nameless, "--hf-config", source, "--out", tmp_path / "o"),
    ):
        assert "File name too long" in refused(capsys, *command)
    assert (
        upstream_converter.main(["--hf-checkpoint", str(nameless), "--save", str(tmp_path)], {})
        == 1
    )
    assert "File name too long" in capsys.readouterr().err


def test_the_upstream_command_line_writes_the_same(source, tmp_path, capsys):
    expected = hf_to_dist(source, tmp_path / "dist", Layout(2, 2, 1))
    architecture = "--swiglu --num-layers 2 --hidden-size 64 --disable-bias-linear"
    sizes = "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"
    more = "--norm-epsilon 1e-6 --make-vocab-size-divisible-by 1 --no-rope-fusion"
    line = f"{architecture} {sizes} {more}".split()
    given = [*line, "--hf-checkpoint", str(source), "--save", str(tmp_path / "saved"), " "]
    assert upstream_converter.main(given, {"RANK": "1"}) == 0
    assert not (tmp_path / "saved").exists()
    assert upstream_converter.main(given, {"RANK": "0"}) == 0
    captured = capsys.readouterr()
    assert captured.err == "not about the architecture, ignored: --no-rope-fusion\n"
    found = latest(tmp_path / "saved")
    assert found is not None
    for path in expected.iterdir():
        assert path.read_bytes() == (found / path.name).read_bytes(), path.name


def test_a_preset_of_another_model_is_an_error_with_both_values(source, tmp_path, capsys):
    out = tmp_path / "saved"
    given = ["--hf-checkpoint", str(source), "--save", str(out)]
    assert upstream_converter.main([*given, "--num-layers", "3", "--add-qkv-bias"], {}) == 1
    said = capsys.readouterr().err
    assert "--num-layers is 3 and config.json says num_layers = 2" in said
    assert "--add-qkv-bias is given and config.json says add_qkv_bias = False" in said
    assert upstream_converter.main(given[:2], {}) == 1
    assert "--save is missing" in capsys.readouterr().err
    assert not out.exists()


def test_layers_with_experts_may_be_given_by_a_number_or_one_by_one(tmp_path, capsys):
    source = make_family(tmp_path / "hf", "qwen3_moe")  # both layers have experts
    given = ["--hf-checkpoint", str(source), "--save", str(tmp_path / "saved"), "--moe-layer-freq"]
    for same in (["1"], ["[1,", "1]"], ["[1]*2"]):
        assert upstream_converter.main([*given, *same], {}) == 0
    for other in (["2"], ["[0,", "1]"], ["[1]*3"]):
        assert upstream_converter.main([*given, *other], {}) == 1
        assert "config.json says moe_layer_freq = 1" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    """One of 0.4 GB that is a single tensor."""
    small, large = make_qwen3(tmp_path / "s"), tmp_path / "large"
    make_qwen3(large, tied=True, vocab_size=1_600_000, hidden=128, torch_dtype="bfloat16")
    peaks = []
    for source in (small, large):
        out = tmp_path / f"{source.name}-out"
        process = subprocess.Popen(
            [*CLI, "hf-to-dist", "--hf", str(source), "--out", str(out)], stdout=subprocess.DEVNULL
        )
        status, peak = Path(f"/proc/{process.pid}/status"), 0
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
            peak = max(peak, int(found[1]) if found else 0)
            time.sleep(0.005)
        assert process.returncode == 0
        peaks.append(peak)
        assert (out / TRACKER).exists()
    assert peaks[1] - peaks[0] < 350_000
