import json
import shutil
from pathlib import Path

import pytest
import torch
from slime_convert import cli, quantized
from slime_core.errors import CheckpointError
from slime_testing.checkpoints import change, hf_tensors, same_bytes
from slime_testing.tiny import make_qwen3


def run(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


def failed(capsys, *arguments: object) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


def test_each_block_has_the_scale_that_its_largest_value_fits():
    weight = torch.zeros(200, 300)
    weight[0, 0], weight[130, 299] = -896.0, 3.0
    weight[130, 298] = 1.0
    eight, scale = quantized.to_fp8(weight)
    assert eight.dtype == torch.float8_e4m3fn
    assert scale.tolist() == [[2.0, 1.0, 1.0], [1.0, 1.0, pytest.approx(3 / 448)]]
    back = quantized.from_fp8(eight, scale, torch.float32)
    assert back[0, 0] == -896.0
    assert back[130, 299] == pytest.approx(3.0)
    assert back[130, 298] == pytest.approx(1.0, rel=1 / 16)
    assert back.count_nonzero() == 3


def test_values_too_small_for_a_factor_become_zeros():
    weight = torch.zeros(1, 4)
    weight[0, 1] = 1e-44  # a 448th of it is less than any float32
    eight, scale = quantized.to_fp8(weight)
    assert scale.tolist() == [[1.0]]
    assert quantized.from_fp8(eight, scale, torch.float32).tolist() == [[0.0] * 4]


def test_eight_bits_are_within_their_rounding_of_the_weight():
    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    eight, scale = quantized.to_fp8(weight)
    back = quantized.from_fp8(eight, scale, torch.float32)
    small = scale.repeat_interleave(128, 0).repeat_interleave(128, 1) * 2**-10  # subnormals
    assert ((back - weight).abs() <= weight.abs() / 16 + small).all()
    # what is quantized is quantized to itself
    again, scale_again = quantized.to_fp8(back)
    assert torch.equal(again.view(torch.uint8), eight.view(torch.uint8))
    assert torch.allclose(scale_again, scale, rtol=1e-6)


def test_tensors_of_integers_are_kept_as_they_are(tmp_path):
    source = make_qwen3(tmp_path / "hf")
    counts = {str(t): torch.tensor([3, 1]).to(t) for t in (torch.uint16, torch.uint32, torch.int8)}
    change(source, lambda tensors: tensors.update(counts))
    run("cast", "--hf", source, "--out", tmp_path / "half", "--dtype", "bf16")
    found = hf_tensors(tmp_path / "half")
    assert same_bytes({name: found[name] for name in counts}, counts)


def test_four_bits_are_unpacked_from_the_lowest():
    packed = torch.tensor([[0x76543210, -0x01234568]], dtype=torch.int32)  # ...FEDCBA98
    scale = torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16)
    found = quantized.from_int4(packed, scale, 16, 8, torch.float32)
    assert found.tolist() == [[*range(-8, 0), *(x / 2 for x in range(8))]]


def test_the_last_columns_may_be_fewer_than_share_a_factor():
    packed = torch.tensor([[0x00009999]], dtype=torch.int32)  # 1, four times
    scale = torch.tensor([[2.0, 5.0]])
    assert quantized.from_int4(packed, scale, 4, 3, torch.float32).tolist() == [[2, 2, 2, 5]]


def test_a_cast_there_and_back_keeps_what_was_rounded_once(tmp_path, capsys):
    source = make_qwen3(tmp_path / "hf", hidden=128, intermediate_size=320)
    half, eight, back, again = (tmp_path / name for name in ("half", "eight", "back", "again"))
    run("cast", "--hf", source, "--out", half, "--dtype", "bf16")
    assert json.loads((half / "config.json").read_text())["torch_dtype"] == "bfloat16"
    rounded = {name: tensor.bfloat16() for name, tensor in hf_tensors(source).items()}
    assert same_bytes(hf_tensors(half), rounded)

    run("cast", "--hf", half, "--out", eight, "--dtype", "fp8")
    tensors = hf_tensors(eight)
    assert tensors["model.layers.0.mlp.down_proj.weight"].dtype == torch.float8_e4m3fn
    assert tensors["model.layers.0.mlp.down_proj.weight_scale_inv"].shape == (1, 3)
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    config = json.loads((eight / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]

    run("cast", "--hf", eight, "--out", back, "--dtype", "bf16")
    assert "quantization_config" not in json.loads((back / "config.json").read_text())
    run("cast", "--hf", back, "--out", again, "--dtype", "fp8")
    for name, tensor in hf_tensors(back).items():
        if "_proj" in name:
            error = (tensor.float() - rounded[name].float()).abs()
            assert (error <= rounded[name].float().abs() / 15 + 1e-3).all()
        else:
            assert torch.equal(tensor, rounded[name])
    capsys.readouterr()
    assert "is fp8 already" in failed(
        capsys, "cast", "--hf", eight, "--out", tmp_path / "x", "--dtype", "fp8"
    )
    assert "fp8: slime-convert cast" in (run("inspect", eight), capsys.readouterr().out)[1]
    assert "give the unquantized" in failed(
        capsys, "hf-to-dist", "--hf", eight, "--out", tmp_path / "x"
    )


def pack(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An independent packing: loops over values."""
    rows, columns = weight.shape
    scale = weight.view(rows, -1, group).abs().amax(-1) / 7
    packed = torch.zeros(rows, columns // 8, dtype=torch.int64)
    values = torch.zeros_like(weight)
    for row in range(rows):
        for column in range(columns):
            factor = scale[row, column // group]
            four = int((weight[row, column] / factor).round().clamp(-8, 7)) + 8
            packed[row, column // 8] |= four << 4 * (column % 8)
            values[row, column] = (four - 8) * factor
    packed = torch.where(packed >= 2**31, packed - 2**32, packed)
    return packed.int(), scale, values


def int4_checkpoint(directory: Path) -> tuple[Path, str, torch.Tensor]:
    source = make_qwen3(directory)
    name, found = "model.layers.0.mlp.down_proj.weight", {}

    def quantize(tensors):
        packed, scale, values = pack(tensors.pop(name), 32)
        tensors[f"{name}_packed"], tensors[f"{name}_scale"] = packed, scale
        tensors[f"{name}_shape"] = torch.tensor(values.shape)
        found["values"] = values

    change(source, quantize)
    config = json.loads((source / "config.json").read_text())
    weights = {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights | {"type": "int"}}},
    }
    (source / "config.json").write_text(json.dumps(config))
    return source, name, found["values"]


def test_four_bit_weights_are_read(tmp_path):
    source, name, values = int4_checkpoint(tmp_path / "hf")
    run("cast", "--hf", source, "--out", tmp_path / "half", "--dtype", "bf16")
    tensors = hf_tensors(tmp_path / "half")
    assert torch.equal(tensors[name], values.bfloat16())
    assert not [name for name in tensors if "_packed" in name or "_shape" in name]
    run("inspect", tmp_path / "half")
    run("hf-to-dist", "--hf", tmp_path / "half", "--out", tmp_path / "dist")


@pytest.mark.parametrize("suffix", ["_scale", "_shape"])
def test_a_quantized_weight_without_its_companions_is_refused(tmp_path, capsys, suffix):
    source, name, _ = int4_checkpoint(tmp_path / "hf")
    change(source, lambda tensors: tensors.pop(name + suffix))
    out = tmp_path / "out"
    said = failed(capsys, "cast", "--hf", source, "--out", out, "--dtype", "bf16")
    assert name + suffix in said
    assert not out.exists()


def test_columns_in_another_order_are_refused(tmp_path, capsys):
    """With ``actorder`` the factor of a column is that of its ``g_idx``, which is not read."""
    source, _, _ = int4_checkpoint(tmp_path / "hf")
    text = (source / "config.json").read_text()
    given = ("cast", "--hf", source, "--dtype", "bf16", "--out")
    for order, fits in [("group", False), ("dynamic", False), ("weight", True), (None, True)]:
        config = json.loads(text)
        weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
        weights["actorder"] = order
        (source / "config.json").write_text(json.dumps(config))
        out = tmp_path / str(order)
        if fits:
            run(*given, out)
        else:
            assert "columns not reordered" in failed(capsys, *given, out)
            assert not out.exists()


INT4 = {"num_bits": 4, "group_size": 32, "strategy": "group"}


def said_of_weights(**changes):
    groups = {"group_0": {"weights": INT4 | changes}}
    given = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return quantized.quantization({"quantization_config": given | {"config_groups": groups}})


def test_integers_are_symmetric_unless_it_is_said():
    assert said_of_weights() == quantized.Quantization("int4", 32)


@pytest.mark.parametrize(
    "changes", [{"symmetric": False}, {"num_bits": 8}, {"type": "float"}, {"strategy": "channel"}]
)
def test_values_that_would_be_read_otherwise_than_they_were_written_are_refused(changes):
    with pytest.raises(CheckpointError, match="groups of 4-bit integers"):
        said_of_weights(**changes)


@pytest.mark.parametrize("given", [{}, {"weight_block_size": [64, 64]}])
def test_eight_bits_in_other_blocks_are_refused(given):
    with pytest.raises(CheckpointError, match="fp8 in blocks of 128 x 128"):
        quantized.quantization({"quantization_config": {"quant_method": "fp8", **given}})


def test_other_quantizations_are_refused(tmp_path, capsys):
    source = make_qwen3(tmp_path / "hf", quantization_config={"quant_method": "awq"})
    given = ("cast", "--hf", source, "--out", tmp_path / "out", "--dtype", "bf16")
    assert "quant_method = 'awq'" in failed(capsys, *given)


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_no_room_for_a_cast_is_told_before_anything_is_written(
    tmp_path, capsys, monkeypatch, dtype
):
    source, out = make_qwen3(tmp_path / "hf"), tmp_path / "there" / "cast"
    run("cast", "--hf", source, "--out", tmp_path / "done", "--dtype", dtype)
    needed = sum(tensor.nbytes for tensor in hf_tensors(tmp_path / "done").values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    said = failed(capsys, "cast", "--hf", source, "--out", out, "--dtype", dtype)
    assert f"cannot write {out}: {needed:,} bytes are needed and {needed - 1:,} are free" in said
    assert not out.parent.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    run("cast", "--hf", source, "--out", out, "--dtype", dtype)
